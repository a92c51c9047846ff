"""What a run view shows, as a pure fold over the run's events. No I/O, no clock, no widget.

    state = begin(record)
    for event in events:
        state = fold(state, event)

The state is bounded whatever the events say: a stage keeps the first and the last entries of its
transcript, an entry the head and the tail of its text, telemetry the last samples. All text in it
is clean (`text.clean`), none of it is escaped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from voidbox_lab.spec.budget import Budget
from voidbox_lab.spec.events import (
    AgentLog,
    AgentText,
    BoxBooted,
    Denied,
    Egress,
    Event,
    FileKept,
    ModelCall,
    Mounted,
    Notice,
    Queued,
    RunChanged,
    StageChanged,
    Telemetry,
    ToolCall,
    ToolResult,
)
from voidbox_lab.spec.run import (
    AT_REST,
    TERMINAL,
    BoxFacts,
    CachedFrom,
    RunRecord,
    Stage,
    StageRecord,
    Tokens,
    Trouble,
)
from voidbox_lab.widgets.doings import Doings, did, left, recorded
from voidbox_lab.widgets.frozen import replaced
from voidbox_lab.widgets.text import Clip, one_line
from voidbox_lab.widgets.transcript import MAX_ENTRIES, Entry, Transcript, said
from voidbox_lab.widgets.vitals import Vitals, sampled

MAX_STAGES = 256
"""Most that are shown; a run may have more, which `voidbox show` and `Run.to_frame` list."""
MAX_NOTICES = 8
MIN_ENTRIES = 8
ENTRY_BUDGET = 640
"""Transcript entries kept in all stages together, above the minimum of each."""


@dataclass(frozen=True)
class StageView:
    """A stage as it is shown."""

    name: str
    state: str = "queued"
    inner: bool = False
    """Other stages need it: its answer is a step on the way, not what the run says."""
    needs: tuple[str, ...] = ()
    command: bool = False
    """What it says is a program's output, not an agent's Markdown."""
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    model: str | None = None
    model_source: str | None = None
    box: BoxFacts | None = None
    tokens: Tokens = field(default_factory=Tokens)
    cost_usd: float | None = 0.0
    """None as soon as one call had no price: a sum that leaves something out would be a lie."""
    turns: int = 0
    tool_calls: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    trouble: Trouble | None = None
    queue: str | None = None
    """While it waits for room: its place and what is lacking."""
    attempt: int = 0
    cached: CachedFrom | None = None
    output: Clip | None = None
    transcript: Transcript = field(default_factory=Transcript)
    vitals: Vitals = field(default_factory=Vitals)
    doings: Doings = field(default_factory=Doings)
    """What it was denied, where it connected to, what it left."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Of its transcript, those that are kept."""
        return self.transcript.entries

    @property
    def over(self) -> bool:
        """It will not change any more."""
        return self.state in TERMINAL


@dataclass(frozen=True)
class ViewState:
    """A run as it is shown."""

    run: str
    state: str = "queued"
    created_at: float = 0.0
    finished_at: float | None = None
    trouble: Trouble | None = None
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    stages: dict[str, StageView] = field(default_factory=dict)
    more_stages: int = 0
    """Stages that the run has beside these."""
    notices: tuple[str, ...] = ()
    last_seq: int = 0

    @property
    def over(self) -> bool:
        """It will not change any more, unless somebody resumes it."""
        return self.state in AT_REST

    @property
    def tokens(self) -> Tokens:
        """Tokens of all stages."""
        return sum((s.tokens for s in self.stages.values()), Tokens())

    @property
    def cost_usd(self) -> float | None:
        """Dollars of all stages; None if any call was unpriced."""
        total = 0.0
        for stage in self.stages.values():
            if stage.cost_usd is None:
                return None
            total += stage.cost_usd
        return total


def begin(record: RunRecord) -> ViewState:
    """The state before the first event: every stage of the run, queued."""
    needed = {name for s in record.spec.stages for name in s.needs}
    shown = record.spec.stages[:MAX_STAGES]
    return ViewState(
        run=record.id,
        created_at=record.created_at,
        budget=record.spec.budget,
        stages={s.box.name: _queued_stage(s, inner=s.box.name in needed) for s in shown},
        more_stages=len(record.spec.stages) - len(shown),
    )


def _queued_stage(stage: Stage, *, inner: bool) -> StageView:
    return StageView(
        name=stage.box.name,
        inner=inner,
        needs=stage.needs,
        command=stage.box.command is not None,
        budget=stage.box.budget,
        model=str(stage.box.model) if stage.box.model else None,
        model_source=_declared_source(stage.box.model),
    )


def _declared_source(model: Any) -> str | None:
    # A scripted model can be known before the first call; live and replay are the gateway's to say.
    return "scripted" if model is not None and model.provider == "scripted" else None


def settle(state: ViewState, record: RunRecord) -> ViewState:
    """`state` with the figures of the store's record: final, where the fold's are sums of what was seen."""
    stages = dict(state.stages)
    for name, kept in record.stages.items():
        if name in stages or len(stages) < MAX_STAGES:
            stages[name] = _settle_stage(stages.get(name, StageView(name=name)), kept)
    at = record.finished_at
    if at is None and record.state in AT_REST:
        # What a dead daemon left has not finished, and goes on no longer either.
        at = state.finished_at
        stages = {name: stage if stage.over else replaced(stage, finished_at=at) for name, stage in stages.items()}
    return replaced(state, state=record.state, finished_at=at, trouble=_trouble(record.trouble), stages=stages)


def _settle_stage(view: StageView, kept: StageRecord) -> StageView:
    return replaced(
        view,
        state=kept.state,
        box=kept.box or view.box,
        model_source=kept.model_source or view.model_source,
        tokens=kept.tokens,
        cost_usd=kept.cost_usd if kept.turns or kept.unpriced else view.cost_usd,
        turns=kept.turns,
        tool_calls=kept.tool_calls,
        started_at=kept.started_at,
        finished_at=kept.finished_at,
        trouble=_trouble(kept.trouble),
        queue=one_line(kept.queue.message, 200) if kept.queue else None,
        attempt=kept.attempts,
        cached=kept.cached,
        output=_output(kept.output) if kept.output is not None else view.output,
        doings=recorded(view.doings, kept),
    )


def interrupted(state: ViewState, message: str, at: float) -> ViewState:
    """`state` as the view leaves it when nobody will tell it the end: everything unfinished is cancelled."""
    trouble = Trouble(kind="cancelled", message=message, cause="interrupted")
    stages = {
        name: s if s.over else replaced(s, state="cancelled", finished_at=at if s.started_at else None)
        for name, s in state.stages.items()
    }
    return replaced(state, state="cancelled", finished_at=at, trouble=trouble, stages=stages)


def noted(state: ViewState, message: str) -> ViewState:
    """`state` with a notice about the run."""
    return replaced(state, notices=(*state.notices, one_line(message, 400))[-MAX_NOTICES:])


def fold(state: ViewState, event: Event) -> ViewState:
    """`state` after `event`. Events seen before, by their number, change nothing: a resumed stream is safe."""
    if event.seq <= state.last_seq:
        return state
    state = replaced(state, last_seq=event.seq)
    body = event.body
    if isinstance(body, RunChanged):
        over = body.state in AT_REST
        return replaced(
            state,
            state=body.state,
            trouble=_trouble(body.trouble),
            finished_at=event.at if over else None,
        )
    if event.stage is None:
        if isinstance(body, Notice):
            return noted(state, body.message)
        return state
    name = event.stage if event.stage in state.stages else one_line(event.stage, 64)
    stage = state.stages.get(name)
    if stage is None:
        if len(state.stages) >= MAX_STAGES:
            return state
        stage = StageView(name=name)
    if isinstance(body, AgentText | ToolCall | ToolResult | AgentLog | Notice):
        cap = min(MAX_ENTRIES, max(MIN_ENTRIES, ENTRY_BUDGET // max(1, len(state.stages))))
        calls = stage.tool_calls + isinstance(body, ToolCall)
        changed = replaced(stage, transcript=said(stage.transcript, body, event, cap), tool_calls=calls)
    else:
        changed = _FOLDS[type(body)](stage, body, event.at)
    return replaced(state, stages=state.stages | {name: changed})


def _stage_changed(stage: StageView, body: StageChanged, at: float) -> StageView:
    over = body.state in TERMINAL
    started = stage.started_at
    if started is None and body.state not in {"queued", "skipped"}:
        started = at
    return replaced(
        stage,
        state=body.state,
        started_at=started,
        finished_at=at if over and started is not None else None,
        trouble=None if body.state == "succeeded" else _trouble(body.trouble) or stage.trouble,
        queue=None,
        attempt=body.attempt or stage.attempt,
        cached=body.cached or stage.cached,
        output=_output(body.output) if body.output is not None else stage.output,
        doings=left(stage.doings, body.files),
    )


def _box(stage: StageView, body: BoxBooted, _at: float) -> StageView:
    return replaced(stage, box=body.facts)


def _queued(stage: StageView, body: Queued, _at: float) -> StageView:
    place = "next" if body.ahead == 0 else f"{body.ahead} in front"
    return replaced(stage, queue=f"waits for room ({place}): {one_line(body.message, 200)}")


def _model_call(stage: StageView, body: ModelCall, _at: float) -> StageView:
    known = stage.cost_usd is not None and not body.is_unpriced
    return replaced(
        stage,
        model_source=body.source,
        tokens=stage.tokens + body.tokens,
        # Sums are taken in order, so the same events give the same figure.
        cost_usd=(stage.cost_usd or 0.0) + (body.cost_usd or 0.0) if known else None,
        turns=stage.turns + int(body.is_answered),
    )


def _did(stage: StageView, body: Denied | Egress | FileKept | Mounted, _at: float) -> StageView:
    return replaced(stage, doings=did(stage.doings, body))


def _telemetry(stage: StageView, body: Telemetry, _at: float) -> StageView:
    return replaced(stage, vitals=sampled(stage.vitals, body))


_FOLDS: dict[type, Callable[[StageView, Any, float], StageView]] = {
    StageChanged: _stage_changed,
    Queued: _queued,
    BoxBooted: _box,
    ModelCall: _model_call,
    Telemetry: _telemetry,
    **dict.fromkeys((Denied, Egress, FileKept, Mounted), _did),
}


def _trouble(trouble: Trouble | None) -> Trouble | None:
    # Messages may quote the guest: one line, no control codes.
    return trouble and trouble.model_copy(update={"message": one_line(trouble.message, 800)})


def _output(text: str) -> Clip:
    return Clip.of(text, head=12288, tail=4096)
