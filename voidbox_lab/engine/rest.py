"""Ends that nobody drives: of runs, by their records alone; and of attempts that failed, as one of five kinds."""

from __future__ import annotations

import logging

from voidbox_lab.box.trouble import first_error
from voidbox_lab.engine.journal import Journal
from voidbox_lab.errors import VoidboxError
from voidbox_lab.spec import AT_REST, TERMINAL, RunRecord, Trouble
from voidbox_lab.spec.events import RunChanged, StageChanged

log = logging.getLogger(__name__)


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


def trouble_of(error: Exception) -> Trouble:
    """One of the five kinds from whatever a stage raised; faults of our own are logged with their traceback."""
    found: BaseException = first_error(error) if isinstance(error, BaseExceptionGroup) else error
    if isinstance(found, VoidboxError):
        return Trouble.from_error(found.to_dict())
    log.error("a stage failed unexpectedly", exc_info=found)
    what = f"{type(found).__name__}: {found}"[:300]
    return Trouble(
        kind="provider", message=f"The stage failed unexpectedly ({what}); please report it.", cause="internal"
    )
