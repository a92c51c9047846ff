"""Frames across runs, in exact numbers: what each model, skill and stage took, and when."""

from __future__ import annotations

import math
from datetime import timedelta, timezone

import pytest

from voidbox_lab.observe.across import (
    CALL_COLUMNS,
    MAX_KEYS,
    NO_MODEL,
    NO_SKILL,
    OTHER,
    RUN_COLUMNS,
    RUN_STAGE_COLUMNS,
    RunFacts,
    calls_frame,
    facts,
    fitting_period,
    over_time,
    run_stages_frame,
    runs_frame,
    shares,
)
from voidbox_lab.spec import Model, RunSpec, Skill, Stage, VoidBoxSpec
from voidbox_lab.spec.events import Body, Event, ModelCall, RunChanged, StageChanged
from voidbox_lab.spec.run import CachedFrom, Tokens
from voidbox_lab.store.fold import rebuild

NOON = 1_700_049_600.0
"""2023-11-15 12:00 UTC, a Wednesday."""
DAY = 86400.0


def box(name: str, model: str = "anthropic:big", skills: tuple[str, ...] = ()) -> VoidBoxSpec:
    made = tuple(Skill(name=skill, description="d", body="b") for skill in skills)
    return VoidBoxSpec(name=name, prompt="p", model=Model.parse(model), skills=made)


def call(tokens: int, cost: float | None) -> ModelCall:
    return ModelCall(
        request="r",
        model="big",
        source="live",
        status=200,
        tokens=Tokens(input=tokens),
        cost_usd=cost,
        duration_s=2.0,
    )


def history(run: str, at: float, boxes: tuple[VoidBoxSpec, ...], *bodies: tuple[str | None, Body]) -> list[Event]:
    return [Event(seq=n, run=run, at=at + n, stage=stage, body=body) for n, (stage, body) in enumerate(bodies, 1)]


def run(name: str, at: float, boxes: tuple[VoidBoxSpec, ...], *bodies: tuple[str | None, Body]) -> RunFacts:
    spec = RunSpec(stages=tuple(Stage(box=b) for b in boxes), name="nightly")
    return facts(rebuild(name, spec, history(name, at, boxes, *bodies), at=at))


BOXES = (box("read", skills=("prices", "risk")), box("write", "openai:small", ("prices",)))
FIRST = run(
    "run-1",
    NOON,
    BOXES,
    (None, RunChanged(state="running")),
    ("read", StageChanged(state="running")),
    ("read", call(100, 0.5)),
    ("write", StageChanged(state="running")),
    ("write", call(40, 0.25)),
    ("write", call(60, 0.25)),
    ("read", StageChanged(state="succeeded", output="x")),
    ("write", StageChanged(state="failed")),
    (None, RunChanged(state="failed")),
)
SECOND = run(
    "run-2",
    NOON + 2 * DAY,
    BOXES,
    ("read", StageChanged(state="running")),
    ("read", call(10, None)),
    ("write", StageChanged(state="succeeded", output="y", cached=CachedFrom(run="run-1", stage="write"))),
)


def test_a_row_for_each_run() -> None:
    frame = runs_frame([FIRST, SECOND])
    assert list(frame.columns) == list(RUN_COLUMNS)
    assert list(frame.index) == ["run-1", "run-2"]
    first, second = frame.loc["run-1"], frame.loc["run-2"]
    assert (first["state"], first["seconds"], first["stages"]) == ("failed", 9.0, 2)
    assert (first["succeeded"], first["failed"], first["tokens"]) == (1, 1, 200)
    assert (first["cost_usd"], first["unpriced"]) == (1.0, 0)
    assert first["models"] == "anthropic:big, openai:small"
    assert math.isnan(second["seconds"])
    assert (second["cost_usd"], second["unpriced"]) == (0.0, 1)
    assert str(first["created"]) == "2023-11-15 12:00:00+00:00"


def test_a_row_for_each_stage_and_unpriced_is_not_free() -> None:
    frame = run_stages_frame([FIRST, SECOND])
    assert list(frame.columns) == list(RUN_STAGE_COLUMNS)
    assert frame[["run", "stage"]].to_numpy().tolist() == [
        ["run-1", "read"],
        ["run-1", "write"],
        ["run-2", "read"],
        ["run-2", "write"],
    ]
    assert frame["cost_usd"].tolist()[:2] == [0.5, 0.5]
    assert math.isnan(frame["cost_usd"][2]), "unpriced"
    assert (frame["cost_usd"][3], frame["cached"][3]) == (0.0, True)
    assert frame["seconds"].tolist()[:2] == [5.0, 4.0]
    assert frame["skills"][0] == ("prices", "risk")


def test_a_row_for_each_call() -> None:
    """With the stage's model, which names its provider, and what else is among the events left out."""
    events = history("run-1", NOON, BOXES, ("read", call(100, 0.5)), (None, RunChanged(state="running")))
    stranger = Event(seq=1, run="run-9", at=NOON, stage="read", body=call(7, None))
    frame = calls_frame([FIRST], [*events, stranger])
    assert list(frame.columns) == list(CALL_COLUMNS)
    assert frame["model"].tolist() == ["anthropic:big", "big"]
    assert frame["tokens"].tolist() == [100, 7]
    assert frame["cost_usd"][0] == 0.5
    assert math.isnan(frame["cost_usd"][1])
    assert len(over_time(frame, "model", "day")) == 1, "calls can be added up as stages can"


def test_days_are_those_of_the_zone() -> None:
    late = timezone(timedelta(hours=13))
    assert str(runs_frame([FIRST])["day"].iloc[0]) == "2023-11-15 00:00:00"
    assert str(runs_frame([FIRST], zone=late)["day"].iloc[0]) == "2023-11-16 00:00:00"
    assert str(over_time(run_stages_frame([FIRST], zone=late), "model", "day").index[0]) == "2023-11-16 00:00:00"


def test_dollars_by_model_have_a_row_for_each_day_between() -> None:
    table = over_time(run_stages_frame([FIRST, SECOND]), "model", "day")
    assert list(table.columns) == ["anthropic:big", "openai:small"]
    assert [str(day.date()) for day in table.index] == ["2023-11-15", "2023-11-16", "2023-11-17"]
    assert table.to_numpy().tolist() == [[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]


def test_a_stage_with_two_skills_is_divided_between_them() -> None:
    """So that the parts add up to what was spent."""
    stages = run_stages_frame([FIRST])
    assert over_time(stages, "skill", "day").iloc[0].to_dict() == {"prices": 0.75, "risk": 0.25}
    table = shares(stages, "skill")
    assert table["cost_usd"].to_dict() == {"prices": 0.75, "risk": 0.25}
    assert table["tokens"].to_dict() == {"prices": 150.0, "risk": 50.0}
    assert table["stages"].to_dict() == {"prices": 2, "risk": 1}


def test_shares_count_what_has_no_price() -> None:
    table = shares(run_stages_frame([FIRST, SECOND]), "model")
    assert table["unpriced"].to_dict() == {"anthropic:big": 1, "openai:small": 0}
    assert table["cost_usd"].to_dict() == {"anthropic:big": 0.5, "openai:small": 0.5}
    assert list(shares(run_stages_frame([FIRST, SECOND]), "stage").index) == ["read", "write"]


def test_tokens_can_be_added_up_as_well() -> None:
    table = over_time(run_stages_frame([FIRST, SECOND]), "stage", "day", "tokens")
    assert table["read"].tolist() == [100, 0, 10]


def test_what_has_no_model_and_no_skill_is_named_so() -> None:
    """And cannot be taken for a name: those have no spaces."""
    command = VoidBoxSpec(name="count", command=("wc",))
    frame = run_stages_frame([run("run-3", NOON, (command,), ("count", StageChanged(state="running")))])
    assert list(shares(frame, "model").index) == [NO_MODEL]
    assert list(shares(frame, "skill").index) == [NO_SKILL]


def test_many_keys_become_a_few_and_the_rest() -> None:
    boxes = tuple(box(f"s{n}") for n in range(12))
    frame = run_stages_frame(
        [run("run-4", NOON, boxes, *((b.name, call(1, 12.0 - n)) for n, b in enumerate(boxes)))]
    )
    table = over_time(frame, "stage", "hour")
    assert list(table.columns) == [f"s{n}" for n in range(MAX_KEYS - 1)] + [OTHER]
    assert table[OTHER].sum() == 5 + 4 + 3 + 2 + 1
    assert table.to_numpy().sum() == sum(range(1, 13))


def test_the_rest_is_nobodys_name() -> None:
    """A stage may be called other, and keeps what it spent."""
    boxes = tuple(box(n) for n in ("other", *(f"s{n}" for n in range(11))))
    frame = run_stages_frame([run("run-5", NOON, boxes, *((b.name, call(1, 3.0)) for b in boxes))])
    assert over_time(frame, "stage", "hour").to_numpy().sum() == 36


def test_weeks_begin_on_monday() -> None:
    table = over_time(run_stages_frame([FIRST, SECOND]), "model", "week")
    assert [str(week.date()) for week in table.index] == ["2023-11-13"]


@pytest.mark.parametrize("make", [runs_frame, run_stages_frame, lambda none: calls_frame(none, [])])
def test_of_nothing_there_are_empty_frames(make: object) -> None:
    frame = make([])  # type: ignore[operator]
    assert len(frame) == 0
    assert "cost_usd" in frame.columns


def test_of_nothing_there_is_an_empty_table() -> None:
    for by in ("model", "skill", "stage"):
        assert over_time(run_stages_frame([]), by, "day").empty  # type: ignore[arg-type]
        assert shares(run_stages_frame([]), by).empty  # type: ignore[arg-type]


def test_bars_are_neither_too_many_nor_too_few() -> None:
    assert [fitting_period(days * DAY) for days in (1, 7, 30, 90, 400)] == ["hour", "day", "day", "day", "week"]
