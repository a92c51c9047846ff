"""Differences of specs: what differs and nothing else, a field at a time, bounded."""

from __future__ import annotations

from voidbox_lab.observe.compare import ABSENT, WIDTH, differences
from voidbox_lab.spec import Budget, Model, RunRecord, RunSpec, Skill, Stage, VoidBoxSpec
from voidbox_lab.store.fold import new_record


def record(*boxes: VoidBoxSpec, **options: object) -> RunRecord:
    spec = RunSpec(stages=tuple(Stage(box=b) for b in boxes), **options)  # type: ignore[arg-type]
    return new_record("r", spec, at=0.0)


def box(name: str = "a", prompt: str = "p", **options: object) -> VoidBoxSpec:
    return VoidBoxSpec(name=name, prompt=prompt, model=Model.parse("scripted:x"), **options)  # type: ignore[arg-type]


def found(*records: RunRecord) -> dict[str, tuple[str, ...]]:
    rows, count = differences(records)
    assert count == len(rows)
    return {row.path: row.values for row in rows}


def test_equal_specs_have_none() -> None:
    """Names of runs are no difference of what was run."""
    assert found(record(box(), name="one"), record(box(), name="two")) == {}


def test_fields_are_named_by_stage() -> None:
    other = record(box(memory_mb=1024), budget=Budget(usd=2))
    assert found(record(box()), other) == {"a.memory_mb": (ABSENT, "1024"), "budget.usd": (ABSENT, "2.0")}


def test_the_order_of_stages_is_no_difference_and_another_stage_is() -> None:
    assert found(record(box("a"), box("b")), record(box("b"), box("a"))) == {}
    more = found(record(box("a")), record(box("a"), box("b")))
    assert more["b.prompt"] == (ABSENT, "p")


def test_a_skill_more_is_a_difference_of_that_skill() -> None:
    one, two = (Skill(name=n, description="d", body="b") for n in ("one", "two"))
    rows = found(record(box(skills=(one,))), record(box(skills=(two, one))))
    assert set(rows) == {"a.skills.two.body", "a.skills.two.description"}


def test_long_texts_are_shown_where_they_differ() -> None:
    rows = found(record(box(prompt="x" * 5000 + "left" + "y" * 5000)), record(box(prompt="x" * 5000 + "right")))
    left, right = rows["a.prompt"]
    assert "left" in left
    assert "right" in right
    assert max(len(left), len(right)) <= WIDTH + 2


def test_their_number_is_bounded_and_said() -> None:
    many = record(box(), inputs={f"f{n}": {"digest": "sha256:" + "0" * 64, "size": n} for n in range(1, 300)})
    rows, count = differences([record(box()), many], limit=50)
    assert (len(rows), count) == (50, 598)
