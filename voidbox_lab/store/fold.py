"""A run's record as a pure fold of its events. No I/O, no clock.

`rebuild(spec, events)` gives the same record at any time, from any store: the record is a cache of
the events, and the events are the truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from voidbox_lab.spec import TERMINAL, QueuePlace, RunRecord, RunSpec, StageRecord
from voidbox_lab.spec.events import (
    BoxBooted,
    Denied,
    Egress,
    Event,
    ModelCall,
    Queued,
    RunChanged,
    StageChanged,
    ToolCall,
)


def new_record(run: str, spec: RunSpec, *, at: float) -> RunRecord:
    """The record of a run that has no events yet."""
    stages = {
        s.box.name: StageRecord(
            name=s.box.name,
            model=str(s.box.model) if s.box.model else None,
            model_source="scripted" if s.box.model and s.box.model.provider == "scripted" else None,
        )
        for s in spec.stages
    }
    return RunRecord(id=run, spec=spec, created_at=at, stages=stages)


def apply(record: RunRecord, event: Event) -> RunRecord:
    """`record` after `event`. Returns `record` itself if the event does not touch it.

    A terminal state stays: a later change of state of the same run or stage is ignored. Metering is
    not: a model call that ends after its stage was cancelled has still been paid for.
    """
    body = event.body
    if isinstance(body, RunChanged):
        if record.state in TERMINAL:
            return record
        end = event.at if body.state in TERMINAL else None
        return record.model_copy(update={"state": body.state, "finished_at": end, "trouble": body.trouble})
    before = record.stages.get(event.stage or "")
    if before is None:
        return record
    change = _stage_change(before, event)
    if not change:
        return record
    return record.model_copy(update={"stages": record.stages | {before.name: before.model_copy(update=change)}})


def rebuild(run: str, spec: RunSpec, events: Iterable[Event], *, at: float) -> RunRecord:
    """The record of a run from nothing but its spec and its events."""
    record = new_record(run, spec, at=at)
    for event in events:
        record = apply(record, event)
    return record


def _stage_change(before: StageRecord, event: Event) -> dict[str, Any]:
    match event.body:
        case StageChanged(state=state, trouble=trouble, output=output) as body:
            if before.state in TERMINAL:
                return {}
            change: dict[str, Any] = {"state": state, "trouble": trouble, "queue": None}
            if output is not None:
                change |= {"output": output, "output_file": body.output_file, "files": body.files}
            if body.attempt is not None:
                change["attempts"] = body.attempt
            if body.cached is not None:
                change["cached"] = body.cached
            if before.started_at is None and state not in {"queued", "skipped"}:
                change["started_at"] = event.at
            if state in TERMINAL:
                change["finished_at"] = event.at
            return change
        case Queued(ahead=ahead, message=message):
            return {} if before.state in TERMINAL else {"queue": QueuePlace(ahead=ahead, message=message)}
        case BoxBooted(facts=facts):
            return {"box": facts}
        case ToolCall():
            return {"tool_calls": before.tool_calls + 1}
        case Denied(count=count):
            return {"denied": before.denied + count}
        case Egress() as one:
            return {
                "connections": before.connections + 1,
                "bytes_out": before.bytes_out + one.bytes_out,
                "bytes_in": before.bytes_in + one.bytes_in,
            }
        case ModelCall() as call:
            unpriced = before.unpriced or call.is_unpriced
            return {
                "model_source": call.source,
                "tokens": before.tokens + call.tokens,
                "cost_usd": None if unpriced else _sum(before.cost_usd, call.cost_usd),
                "unpriced": unpriced,
                "turns": before.turns + int(call.is_answered),
            }
    return {}


def _sum(before: float | None, cost: float | None) -> float | None:
    return before if cost is None else (before or 0.0) + cost
