"""The spans of a run as a fold of its events. No I/O, no clock, and nothing of OpenTelemetry.

    run ─▶ stage (one for each attempt) ─▶ queue, boot, provision, collect
                                       └▶ agent, or command ─▶ model call, tool call ─▶ connection

The same events give the same spans with the same ids (`voidbox_lab.spec.tracing`), be they fed as they are
recorded or read from a store years later. What is held is what is open: it is bounded, whatever a guest sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

from voidbox_lab.observe import conventions as c
from voidbox_lab.observe import describe
from voidbox_lab.observe.span import Span, Status, Usage, Value, What, printable
from voidbox_lab.spec import TERMINAL, RunRecord, Stage, Trouble
from voidbox_lab.spec.events import (
    BoxBooted,
    Denied,
    Egress,
    Event,
    ModelCall,
    RunChanged,
    StageChanged,
    ToolCall,
    ToolResult,
)
from voidbox_lab.spec.tracing import span_id, trace_id, work_span

MAX_TOOLS = 256
"""Tool calls of an attempt that are open, or known by their ids, at once; beyond it the oldest is given up."""
_PHASES = {"booting": "boot", "provisioning": "provision", "running": None, "collecting": "collect"}
"""States of an attempt at work, in their order, and the phases that they are; in ``running`` its work goes on."""
_NO_RESULT = "no-result"


@dataclass
class _Attempt:
    """An attempt at a stage, and what of it is open."""

    stage: Stage
    number: int
    span: Span
    phase: Span | None = None
    work: Span | None = None
    tools: dict[str, Span] = field(default_factory=dict)
    """Open tool calls by their ids."""
    called: dict[str, str] = field(default_factory=dict)
    """Span ids of the last tool calls, ended ones too, by their ids."""
    usage: Usage = field(default_factory=Usage)
    denied: int = 0
    state: str = "queued"
    over: bool = False

    @property
    def inner(self) -> str:
        """The span in which something happens now that is known of nothing closer."""
        return (self.work or self.span).span_id


class SpanFold:
    """The spans of one run, as its events are fed.

    Args:
        record: the run's; only what it was from the beginning is taken from it.
        contents: whether spans hold the contents of messages: prompts, answers, arguments and results of tools.
    """

    def __init__(self, record: RunRecord, *, contents: bool = False) -> None:
        self._contents = contents
        self._stages = {stage.box.name: stage for stage in record.spec.stages}
        self._attempts: dict[str, _Attempt] = {}
        """The last attempt of each stage."""
        self._usage = Usage()
        name = f"{c.WORKFLOW} {record.spec.name}" if record.spec.name else c.WORKFLOW
        self._run: Span = Span(
            trace_id=trace_id(record.id),
            span_id=span_id(record.id),
            parent_id=None,
            name=name,
            what="run",
            start=record.created_at,
            attributes=describe.of_run(record.id, record.spec),
        )
        self.run, self.trace_id = record.id, self._run.trace_id
        self.over = False
        """Whether the run has ended."""

    def feed(self, event: Event) -> list[Span]:
        """The spans that end by `event`, inner ones first."""
        if isinstance(event.body, RunChanged):
            return list(self._run_changed(event.at, event.body))
        stage = self._stages.get(event.stage or "")
        if stage is None:
            return []
        if isinstance(event.body, StageChanged):
            return list(self._stage_changed(stage, event.at, event.body))
        attempt = self._attempts.get(stage.box.name)
        return [] if attempt is None else list(self._within(attempt, event))

    def open(self) -> list[Span]:
        """The spans that go on."""
        found = [] if self.over else [self._with_usage(self._run, self._usage)]
        for attempt in self._attempts.values():
            if attempt.over:
                continue
            found.append(self._with_usage(attempt.span, attempt.usage))
            found += [span for span in (attempt.phase,) if span is not None]
            if attempt.work is not None:
                found.append(self._with_usage(attempt.work, attempt.usage))
            found += attempt.tools.values()
        return found

    def context(self, stage: str | None) -> str:
        """The id of the span that something belongs to which a stage says now; the run's for no stage."""
        attempt = self._attempts.get(stage or "")
        if attempt is None:
            return self._run.span_id
        if len(attempt.tools) == 1:
            return next(iter(attempt.tools.values())).span_id
        return attempt.inner

    def _run_changed(self, at: float, body: RunChanged) -> Iterator[Span]:
        if self.over or body.state not in TERMINAL:
            return
        for attempt in self._attempts.values():
            yield from self._end_attempt(attempt, at, "cancelled", body.trouble)
        self.over = True
        run = replace(self._run, attributes={**self._run.attributes, c.RUN_STATE: body.state})
        yield self._ended(self._with_usage(run, self._usage), at, body.trouble)

    def _stage_changed(self, stage: Stage, at: float, body: StageChanged) -> Iterator[Span]:
        name, attempt = stage.box.name, self._attempts.get(stage.box.name)
        if attempt is not None and attempt.state in TERMINAL:
            return  # a terminal state stays, as in the store's fold
        if body.attempt is not None:
            number = body.attempt
            if attempt is not None:
                yield from self._end_attempt(attempt, at, "interrupted", body.trouble)
                number = max(number, attempt.number + 1)
            attempt = self._attempts[name] = self._begin(stage, at, number)
            attempt.phase = self._phase(attempt, "queue", at)
        elif body.state in TERMINAL:
            if attempt is None or attempt.over:  # it ended without having begun
                number = attempt.number if attempt is not None else 0
                attempt = self._attempts[name] = self._begin(stage, at, number, f"end-{body.state}")
            yield from self._end_attempt(attempt, at, body.state, body.trouble, body)
        elif attempt is None or attempt.over:
            return
        elif body.state in {"queued", "retrying"}:
            yield from self._end_attempt(attempt, at, body.state, body.trouble)
        elif _order(body.state) > _order(attempt.state):
            attempt.state = body.state
            if attempt.phase is not None:
                yield self._ended(attempt.phase, at)
                attempt.phase = None
            if attempt.work is not None:
                # It has ended; how, its answer tells at the end.
                attempt.work = replace(attempt.work, end=at)
            if phase := _PHASES[body.state]:
                attempt.phase = self._phase(attempt, phase, at)
            else:
                attempt.work = self._work(attempt, at)

    def _within(self, attempt: _Attempt, event: Event) -> Iterator[Span]:
        at = event.at
        match event.body:
            case BoxBooted(facts=facts):
                found = describe.of_box(facts)
                attempt.span = replace(attempt.span, attributes={**attempt.span.attributes, **found})
                if attempt.phase is not None:
                    attempt.phase = replace(attempt.phase, attributes={**attempt.phase.attributes, **found})
            case ModelCall() as call:
                yield self._call(attempt, at, call)
            case ToolCall() as call:
                if not attempt.over:
                    yield from self._tool(attempt, event, call)
            case ToolResult() as result:
                if (span := attempt.tools.pop(printable(result.id), None)) is not None:
                    found = {c.TOOL_RESULT: describe.content(result.content)} if self._contents else {}
                    yield self._failed(replace(span, attributes={**span.attributes, **found}), at, result.is_error)
            case Egress() as body:
                yield self._egress(attempt, event, body)
            case Denied(count=count):
                attempt.denied += count

    def _begin(self, stage: Stage, at: float, number: int, *path: str) -> _Attempt:
        name = stage.box.name
        span = self._span(
            (name, number, "stage", *path),
            self._run.span_id,
            f"stage {name}",
            "stage",
            at,
            describe.of_stage(self.run, stage, number),
        )
        return _Attempt(stage, number, replace(span, stage=name, attempt=number))

    def _phase(self, attempt: _Attempt, name: str, at: float) -> Span:
        return self._in(attempt, (name,), attempt.span.span_id, name, "phase", at, {c.PHASE: name})

    def _work(self, attempt: _Attempt, at: float) -> Span:
        box = attempt.stage.box
        what: Literal["agent", "command"] = "agent" if box.command is None else "command"
        attributes = describe.of_work(attempt.stage, contents=self._contents)
        name = f"{c.AGENT} {box.name}" if what == "agent" else f"exec {attributes[c.EXECUTABLE]}"
        span = self._in(attempt, ("work",), attempt.span.span_id, name, what, at, attributes)
        # What the box was told (`spec.tracing.traceparent`), whatever becomes of the rest.
        return replace(span, span_id=work_span(self.run, box.name, attempt.number))

    def _call(self, attempt: _Attempt, at: float, call: ModelCall) -> Span:
        usage = Usage(1, call.tokens, None if call.is_unpriced else call.cost_usd or 0.0)
        attempt.usage += usage
        self._usage += usage
        found = describe.of_call(call, attempt.stage.box.model) | describe.of_usage(usage)
        start, path = at - max(0.0, call.duration_s), ("model", call.request)
        name = f"{c.CHAT} {printable(call.model)}"
        span = self._in(attempt, path, attempt.inner, name, "model", start, found)
        return self._failed(replace(span, usage=usage), at, describe.call_error(call))

    def _tool(self, attempt: _Attempt, event: Event, call: ToolCall) -> Iterator[Span]:
        key, name = printable(call.id), printable(call.name)
        too_many = max(0, len(attempt.tools) + 1 - MAX_TOOLS)
        for given_up in [key, *islice(attempt.tools, too_many)]:
            if (span := attempt.tools.pop(given_up, None)) is not None:
                yield self._failed(span, event.at, _NO_RESULT)
        found: dict[str, Value] = {c.OPERATION: c.TOOL, c.TOOL_NAME: name, c.TOOL_CALL_ID: key}
        if self._contents:
            found[c.TOOL_ARGUMENTS] = describe.content(call.input)
        # The event's number too: a guest may use an id twice.
        path = ("tool", call.id, event.seq)
        attempt.tools[key] = self._in(attempt, path, attempt.inner, f"{c.TOOL} {name}", "tool", event.at, found)
        attempt.called.pop(key, None)
        attempt.called[key] = attempt.tools[key].span_id
        while len(attempt.called) > MAX_TOOLS:
            attempt.called.pop(next(iter(attempt.called)))

    def _egress(self, attempt: _Attempt, event: Event, body: Egress) -> Span:
        parent = attempt.called.get(printable(body.tool_call or "")) or attempt.inner
        start, found = event.at - max(0.0, body.duration_s), describe.of_egress(body)
        name = f"egress {printable(body.host)}"
        span = self._in(attempt, ("egress", event.seq), parent, name, "egress", start, found)
        error = "" if body.verdict == "allowed" else body.verdict
        return self._failed(replace(span, message=printable(body.reason, 1000)), event.at, error)

    def _end_attempt(
        self,
        attempt: _Attempt,
        at: float,
        state: str,
        trouble: Trouble | None = None,
        body: StageChanged | None = None,
    ) -> Iterator[Span]:
        if attempt.over:
            return
        attempt.over, attempt.state = True, state
        for span in attempt.tools.values():
            yield self._failed(span, at, _NO_RESULT)
        attempt.tools.clear()
        attempt.called.clear()
        work = attempt.work
        # What an agent's end brings to light when its answer is looked at is the agent's failure.
        late = work is not None and work.end is not None and trouble is not None and trouble.kind == "command"
        if attempt.phase is not None:
            yield self._ended(attempt.phase, at, None if late else trouble)
        if work is not None:
            blamed = trouble if late or work.end is None else None
            if self._contents and body is not None and body.output is not None and work.what == "agent":
                work = replace(work, attributes={**work.attributes, **describe.answered(body.output)})
            yield self._ended(self._with_usage(work, attempt.usage), at if work.end is None else work.end, blamed)
        found: dict[str, Value] = {c.STAGE_STATE: state}
        if attempt.denied:
            found[c.DENIED] = attempt.denied
        if body is not None and body.cached is not None:
            found[c.CACHED_FROM] = f"{body.cached.run}/{body.cached.stage}"
        span = replace(attempt.span, attributes={**attempt.span.attributes, **found})
        span = self._ended(self._with_usage(span, attempt.usage), at, trouble)
        yield replace(span, status="cancelled") if state == "skipped" else span

    def _in(
        self,
        attempt: _Attempt,
        path: tuple[str | int, ...],
        parent: str,
        name: str,
        what: What,
        start: float,
        attributes: dict[str, Value],
    ) -> Span:
        """A span within `attempt`."""
        box = attempt.stage.box
        common: dict[str, Value] = {c.RUN_ID: self.run, c.STAGE: box.name, c.ATTEMPT: attempt.number}
        span = self._span((box.name, attempt.number, *path), parent, name, what, start, common | attributes)
        return replace(span, stage=box.name, attempt=attempt.number)

    def _span(
        self,
        path: tuple[str | int, ...],
        parent: str,
        name: str,
        what: What,
        start: float,
        attributes: dict[str, Value],
    ) -> Span:
        return Span(
            trace_id=self._run.trace_id,
            span_id=span_id(self.run, *path),
            parent_id=parent,
            name=name,
            what=what,
            start=start,
            attributes=attributes,
        )

    @staticmethod
    def _with_usage(span: Span, usage: Usage) -> Span:
        if not usage.calls:
            return span
        return replace(span, usage=usage, attributes={**span.attributes, **describe.of_usage(usage)})

    def _ended(self, span: Span, at: float, trouble: Trouble | None = None) -> Span:
        if trouble is None:
            return replace(span, end=max(at, span.start), status="ok")
        status: Status = "cancelled" if trouble.kind == "cancelled" else "error"
        found = {**span.attributes, **describe.of_trouble(trouble)}
        message = describe.sentence(trouble, contents=self._contents)
        return replace(span, end=max(at, span.start), status=status, message=message, attributes=found)

    @staticmethod
    def _failed(span: Span, at: float, error: str | bool) -> Span:
        """`span` at its end, with ``error.type``; "" or False: it succeeded."""
        end = max(at, span.start)
        if not error:
            return replace(span, end=end, status="ok")
        kind = error if isinstance(error, str) else "tool_error"
        return replace(span, end=end, status="error", attributes={**span.attributes, c.ERROR_TYPE: kind})


def _order(state: str) -> int:
    return [*_PHASES].index(state) if state in _PHASES else -1


def spans_of(record: RunRecord, events: Iterable[Event], *, contents: bool = False) -> list[Span]:
    """All spans of a run, those that go on included, by their beginnings; outer ones first."""
    fold = SpanFold(record, contents=contents)
    found = [span for event in events for span in fold.feed(event)] + fold.open()
    order = {"run": 0, "stage": 1, "phase": 2, "agent": 2, "command": 2}
    return sorted(found, key=lambda span: (span.start, order.get(span.what, 3)))
