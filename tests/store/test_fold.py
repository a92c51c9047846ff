"""The fold of events into a record: pure, and a terminal state stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.store.conformance import run_spec
from voidbox_lab.spec import TERMINAL, Tokens
from voidbox_lab.spec.events import AgentText, Event, ModelCall, RunChanged, StageChanged
from voidbox_lab.store import apply, new_record, rebuild

SPEC = run_spec("one", "two")
STATES = st.sampled_from(
    ["queued", "booting", "provisioning", "running", "succeeded", "failed", "cancelled", "skipped"]
)


def call(cost: float | None, tokens: int = 10, status: int = 200) -> ModelCall:
    return ModelCall(
        request="r",
        model="m",
        source="live",
        status=status,
        tokens=Tokens(input=tokens),
        cost_usd=cost,
        duration_s=1,
    )


def fold(*bodies: object, stage: str | None = "one") -> object:
    events = [Event(seq=i, run="r", at=i, stage=stage, body=b) for i, b in enumerate(bodies, 1)]  # type: ignore[arg-type]
    return rebuild("r", SPEC, events, at=0)


def test_unpriced_is_never_free() -> None:
    """One call without a price makes the stage's cost unknown, for good; a failed call without tokens does not."""
    cost = lambda *calls: fold(*calls).stages["one"].cost_usd  # type: ignore[attr-defined]  # noqa: E731
    assert cost() is None
    assert cost(call(0.5), call(0.25)) == 0.75
    assert cost(call(None), call(0.25)) is None
    assert cost(call(0.5), call(None), call(0.5)) is None
    assert cost(call(None, tokens=0, status=502), call(0.5)) == 0.5
    assert cost(call(None, tokens=0), call(0.5)) is None, "answered and not metered"
    assert cost(call(None, tokens=0, status=0), call(0.5)) is None, "broken off, perhaps after it was paid for"
    assert cost(call(0.5), call(None, tokens=0), call(0.5)) is None
    assert cost(call(0.0), call(0.0)) == 0.0


def test_a_run_is_unpriced_if_a_stage_is() -> None:
    """Also where the only call was not metered: no tokens are no sign that nothing was paid."""
    cost = lambda *calls: fold(*calls).cost_usd  # type: ignore[attr-defined]  # noqa: E731
    assert cost() == 0.0
    assert cost(call(0.5)) == 0.5
    assert cost(call(None, tokens=0, status=529)) == 0.0
    for status in (200, 0):
        assert cost(call(None, tokens=0, status=status)) is None


def test_only_answered_calls_are_turns() -> None:
    record = fold(call(0.1), call(None, tokens=0, status=529))
    assert record.stages["one"].turns == 1  # type: ignore[attr-defined]


def test_times_come_from_events() -> None:
    stage = fold(StageChanged(state="queued"), StageChanged(state="booting"), StageChanged(state="failed")).stages[  # type: ignore[attr-defined]
        "one"
    ]
    assert (stage.started_at, stage.finished_at, stage.duration_s) == (2, 3, 1)


def test_an_event_of_no_consequence_returns_the_same_object() -> None:
    record = new_record("r", SPEC, at=0)
    assert apply(record, Event(seq=1, run="r", at=1, stage="one", body=AgentText(text="x"))) is record
    assert apply(record, Event(seq=1, run="r", at=1, stage="nobody", body=StageChanged(state="failed"))) is record


@given(st.lists(st.tuples(st.sampled_from(["one", "two", None]), STATES), max_size=30))
def test_terminal_states_stay(changes: list[tuple[str | None, str]]) -> None:
    """Whatever comes after, the first terminal state of a run or stage is its last."""
    record, first = new_record("r", SPEC, at=0), {}
    for seq, (stage, state) in enumerate(changes, 1):
        if stage is None and state in {"booting", "provisioning", "skipped"}:
            continue
        body = RunChanged(state=state) if stage is None else StageChanged(state=state)  # type: ignore[arg-type]
        record = apply(record, Event(seq=seq, run="r", at=seq, stage=stage, body=body))
        if state in TERMINAL:
            first.setdefault(stage, (state, float(seq)))
    for stage, expected in first.items():
        holder = record if stage is None else record.stages[stage]
        assert (holder.state, holder.finished_at) == expected
