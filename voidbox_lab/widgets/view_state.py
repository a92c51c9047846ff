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
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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
from voidbox_lab.spec.run import AT_REST, TERMINAL, BoxFacts, CachedFrom, RunRecord, StageRecord, Tokens, Trouble
from voidbox_lab.widgets.doings import Doings, did, left, recorded
from voidbox_lab.widgets.text import Clip, clean, one_line
from voidbox_lab.widgets.tool_words import arguments, summary

MAX_STAGES = 256
"""Most that are shown; a run may have more, which `voidbox show` and `Run.to_frame` list."""
MAX_ENTRIES = 40
"""Transcript entries kept per stage; fewer when a run has many stages, so that a view stays small."""
MIN_ENTRIES = 8
ENTRY_BUDGET = 640
"""Transcript entries kept in all stages together, above the minimum of each."""
MAX_SAMPLES = 60
"""Telemetry samples kept per stage."""

EntryKind = Literal["text", "tool", "log", "notice", "warning"]


@dataclass(frozen=True)
class Entry:
    """One item of a stage's transcript. `key` counts from 0 within the stage and is never reused."""

    key: int
    kind: EntryKind
    text: Clip = field(default_factory=Clip)
    """What the agent said or logged; a tool's result."""
    block: int | None = None
    tool_id: str = ""
    name: str = ""
    summary: str = ""
    """A tool call's telling argument, on one line."""
    arguments: str = ""
    done: bool = True
    is_error: bool = False
    at: float = 0.0
    duration_s: float | None = None


@dataclass(frozen=True)
class StageView:
    """A stage as it is shown."""

    name: str
    state: str = "queued"
    inner: bool = False
    """Other stages need it: its answer is a step on the way, not what the run says."""
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
    entries: tuple[Entry, ...] = ()
    next_key: int = 0
    dropped: int = 0
    """Entries left out between the first and the last ones."""
    cpu: tuple[float, ...] = ()
    """Busy share of all vCPUs, 0 to 1."""
    memory: tuple[float, ...] = ()
    """Used share of the guest's memory, 0 to 1."""
    memory_used_kb: int = 0
    memory_total_kb: int = 0
    doings: Doings = field(default_factory=Doings)
    """What it was denied, where it connected to, what it left."""

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
    stages: dict[str, StageView] = field(default_factory=dict)
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
    return ViewState(
        run=record.id,
        created_at=record.created_at,
        stages={
            s.box.name: StageView(
                name=s.box.name,
                inner=s.box.name in needed,
                model=str(s.box.model) if s.box.model else None,
                model_source=_declared_source(s.box.model),
            )
            for s in record.spec.stages[:MAX_STAGES]
        },
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
    return replace(
        state, state=record.state, finished_at=record.finished_at, trouble=_trouble(record.trouble), stages=stages
    )


def _settle_stage(view: StageView, kept: StageRecord) -> StageView:
    return replace(
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
        name: s if s.over else replace(s, state="cancelled", finished_at=at if s.started_at else None)
        for name, s in state.stages.items()
    }
    return replace(state, state="cancelled", finished_at=at, trouble=trouble, stages=stages)


def fold(state: ViewState, event: Event) -> ViewState:
    """`state` after `event`. Events seen before, by their number, change nothing: a resumed stream is safe."""
    if event.seq <= state.last_seq:
        return state
    state = replace(state, last_seq=event.seq)
    body = event.body
    if isinstance(body, RunChanged):
        over = body.state in AT_REST
        return replace(
            state,
            state=body.state,
            trouble=_trouble(body.trouble),
            finished_at=event.at if over else None,
        )
    if event.stage is None:
        if isinstance(body, Notice):
            return replace(state, notices=(*state.notices, one_line(body.message, 400))[-8:])
        return state
    name = one_line(event.stage, 64)
    stage = state.stages.get(name)
    if stage is None:
        if len(state.stages) >= MAX_STAGES:
            return state
        stage = StageView(name=name)
    cap = min(MAX_ENTRIES, max(MIN_ENTRIES, ENTRY_BUDGET // max(1, len(state.stages))))
    changed = _trim(_fold_stage(stage, event), cap)
    return replace(state, stages=state.stages | {name: changed})


def _fold_stage(stage: StageView, event: Event) -> StageView:
    return _FOLDS[type(event.body)](stage, event.body, event.at)


def _stage_changed(stage: StageView, body: StageChanged, at: float) -> StageView:
    over = body.state in TERMINAL
    started = stage.started_at
    if started is None and body.state not in {"queued", "skipped"}:
        started = at
    return replace(
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
    return replace(stage, box=body.facts, memory_total_kb=body.facts.memory_mb * 1024)


def _queued(stage: StageView, body: Queued, _at: float) -> StageView:
    place = "next" if body.ahead == 0 else f"{body.ahead} in front"
    return replace(stage, queue=f"waits for room ({place}): {one_line(body.message, 200)}")


def _text(stage: StageView, body: AgentText, at: float) -> StageView:
    last = stage.entries[-1] if stage.entries else None
    if last and last.kind == "text" and last.block == body.block:
        return _put(stage, replace(last, text=last.text.add(clean(body.text))))
    if not body.text:
        return stage
    return _append(stage, kind="text", text=Clip.of(body.text), block=body.block, at=at)


def _tool_call(stage: StageView, body: ToolCall, at: float) -> StageView:
    stage = replace(stage, tool_calls=stage.tool_calls + 1)
    return _append(
        stage,
        kind="tool",
        tool_id=body.id[:200],
        name=one_line(body.name, 80),
        summary=summary(body.input),
        arguments=arguments(body.input),
        done=False,
        at=at,
        text=Clip(2048, 1024),
    )


def _tool_result(stage: StageView, body: ToolResult, at: float) -> StageView:
    for entry in reversed(stage.entries):
        if entry.kind == "tool" and not entry.done and entry.tool_id == body.id[:200]:
            text = entry.text.add(clean(body.content))
            took = max(0.0, at - entry.at)
            return _put(stage, replace(entry, text=text, done=True, is_error=body.is_error, duration_s=took))
    return stage  # its call is among the entries left out


def _log(stage: StageView, body: AgentLog, at: float) -> StageView:
    last = stage.entries[-1] if stage.entries else None
    line = clean(body.text).rstrip("\n") + "\n"
    if last and last.kind == "log":
        return _put(stage, replace(last, text=last.text.add(line)))
    return _append(stage, kind="log", text=Clip.of(line, head=1024, tail=1024), at=at)


def _notice(stage: StageView, body: Notice, at: float) -> StageView:
    kind: EntryKind = "warning" if body.level == "warning" else "notice"
    return _append(stage, kind=kind, text=Clip.of(body.message, head=600, tail=0), at=at)


def _model_call(stage: StageView, body: ModelCall, _at: float) -> StageView:
    refused = body.status >= 400 and not body.tokens.total
    known = stage.cost_usd is not None and (refused or body.cost_usd is not None)
    return replace(
        stage,
        model_source=body.source,
        tokens=stage.tokens + body.tokens,
        # Sums are taken in order, so the same events give the same figure.
        cost_usd=(stage.cost_usd or 0.0) + (body.cost_usd or 0.0) if known else None,
        turns=stage.turns + 1,
    )


def _did(stage: StageView, body: Denied | Egress | FileKept | Mounted, _at: float) -> StageView:
    return replace(stage, doings=did(stage.doings, body))


def _telemetry(stage: StageView, body: Telemetry, _at: float) -> StageView:
    total = max(1, body.memory_total_kb)
    return replace(
        stage,
        cpu=(*stage.cpu, _share(body.cpu))[-MAX_SAMPLES:],
        memory=(*stage.memory, _share(body.memory_used_kb / total))[-MAX_SAMPLES:],
        memory_used_kb=max(0, body.memory_used_kb),
        memory_total_kb=total,
    )


_FOLDS: dict[type, Callable[[StageView, Any, float], StageView]] = {
    StageChanged: _stage_changed,
    Queued: _queued,
    BoxBooted: _box,
    AgentText: _text,
    ToolCall: _tool_call,
    ToolResult: _tool_result,
    AgentLog: _log,
    Notice: _notice,
    ModelCall: _model_call,
    Telemetry: _telemetry,
    **dict.fromkeys((Denied, Egress, FileKept, Mounted), _did),
}


def _share(value: float) -> float:
    # NaN compares false with everything and ends as 0.
    return round(min(1.0, value), 3) if value > 0 else 0.0


def _append(stage: StageView, **fields: Any) -> StageView:
    entry = Entry(key=stage.next_key, **fields)
    return replace(stage, entries=(*stage.entries, entry), next_key=stage.next_key + 1)


def _put(stage: StageView, entry: Entry) -> StageView:
    return replace(stage, entries=tuple(entry if e.key == entry.key else e for e in stage.entries))


def _trim(stage: StageView, cap: int) -> StageView:
    """At most `cap` entries: the first quarter and the last three quarters."""
    over = len(stage.entries) - cap
    if over <= 0:
        return stage
    head = cap // 4
    return replace(
        stage, entries=stage.entries[:head] + stage.entries[head + over :], dropped=stage.dropped + over
    )


def _trouble(trouble: Trouble | None) -> Trouble | None:
    # Messages may quote the guest: one line, no control codes.
    return trouble and trouble.model_copy(update={"message": one_line(trouble.message, 800)})


def _output(text: str) -> Clip:
    return Clip.of(text, head=12288, tail=4096)
