"""The measurements by name, in the order they are made: one thing at a time."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from anyio.to_thread import run_sync

from voidbox_lab.bench import engine, first_request, inside, million, readers, starts, view
from voidbox_lab.bench.samples import Failure, Figure, Report
from voidbox_lab.bench.stand import Desk, Stand, desk, stand
from voidbox_lab.errors import UserError, VoidboxError

log = logging.getLogger(__name__)

Measure = Callable[[Stand], Awaitable[list[Figure]]]

AtDesk = Callable[[Desk], Awaitable[list[Figure]]]

MEASURES: dict[str, Measure] = {
    "cold": starts.cold,
    "warm": starts.warm,
    "claim": starts.claimed,
    "exec": inside.commands,
    "files": inside.files,
    "burst": starts.burst,
    "footprint": inside.footprint,
    "agent": first_request.default_agent,
    "claude-code": first_request.claude_code,
}
BOXLESS: dict[str, AtDesk] = {
    "engine": engine.overhead,
    "readers": readers.following,
    "million": million.looks,
    "view": view.showing,
}
"""What needs no box and so no libvirt: it runs anywhere."""
NAMES = (*MEASURES, *BOXLESS)
USUAL = tuple(name for name in NAMES if name not in {"claude-code", "million"})
"""What is measured unless something is asked for by name: claude-code is a download of 100 MB, and a million
events take minutes."""


async def run(
    names: Sequence[str],
    *,
    memory_mb: int = 256,
    effort: float = 1.0,
    told: Callable[[str, list[Figure]], None] = lambda _name, _figures: None,
) -> Report:
    """Measure `names`, or all usual ones; `told` hears of each as it is done.

    One that fails is among the report's failures and costs none of the others.

    Raises:
        UserError: a name is not known.
        Unavailable: this machine lacks what boxes need, and they are needed.
    """
    chosen = names or USUAL
    for name in chosen:
        if name not in MEASURES and name not in BOXLESS:
            raise UserError(f"There is no benchmark {name!r}; there are {', '.join(NAMES)}.")
    async with AsyncExitStack() as stack:
        table = stack.enter_context(desk(effort))
        boxes = await stack.enter_async_context(stand(memory_mb, effort)) if set(chosen) & set(MEASURES) else None
        report = Report((boxes or table).machine())
        for name in chosen:
            try:
                if boxes is not None and name in MEASURES:
                    figures = await MEASURES[name](boxes)
                else:
                    figures = await BOXLESS[name](table)
            except Exception as error:
                report.failures.append(failure(name, error))
            else:
                report.figures += figures
                told(name, figures)
            for place in (boxes, table):
                if place is not None:
                    await run_sync(place.clear)
    return report


def failure(name: str, error: Exception) -> Failure:
    """What a report says of `error`, which ended the measurement `name`."""
    while isinstance(error, ExceptionGroup):  # of a measurement's own tasks: they fail alike
        error = error.exceptions[0]
    if isinstance(error, VoidboxError):
        return Failure(name, error.message, error.kind)
    if isinstance(error, OSError):
        where = error.filename or "a file or socket"
        return Failure(name, f"{where} could not be used: {error.strerror or error}; make room there.", "provider")
    # Hours of figures are not to be lost to a bug; it shows its traceback all the same.
    log.error("the benchmark %s failed", name, exc_info=error)
    return Failure(name, f"The benchmark failed ({type(error).__name__}: {error}); please report it.", "provider")
