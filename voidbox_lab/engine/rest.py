"""Runs that nobody drives: put to rest, or ended, by their records alone."""

from __future__ import annotations

from voidbox_lab.engine.journal import Journal
from voidbox_lab.spec import AT_REST, TERMINAL, RunRecord, Trouble
from voidbox_lab.spec.events import RunChanged, StageChanged


async def interrupt(journal: Journal, record: RunRecord, trouble: Trouble) -> None:
    """Put a run whose daemon is gone to rest: what was at work is queued again, what had ended stays."""
    for stage in record.stages.values():
        if stage.state not in TERMINAL and stage.state != "queued":
            await journal.emit(record.id, stage.name, StageChanged(state="queued", trouble=trouble))
    if record.state not in AT_REST:
        await journal.record(record.id, None, RunChanged(state="interrupted", trouble=trouble))


async def end_abruptly(journal: Journal, record: RunRecord, trouble: Trouble) -> None:
    """End a run that nobody drives: stages that were going on fail with `trouble`, waiting ones are skipped."""
    cancelled = trouble.kind == "cancelled"
    for stage in record.stages.values():
        if stage.state in TERMINAL:
            continue
        end = "cancelled" if cancelled else "skipped" if stage.state == "queued" else "failed"
        await journal.emit(record.id, stage.name, StageChanged(state=end, trouble=trouble))
    await journal.record(
        record.id, None, RunChanged(state="cancelled" if cancelled else "failed", trouble=trouble)
    )
