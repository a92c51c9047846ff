"""The measurements by name, in the order they are made: one thing at a time."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from anyio.to_thread import run_sync

from voidbox_lab.bench import first_request, inside, starts
from voidbox_lab.bench.samples import Failure, Figure, Report
from voidbox_lab.bench.stand import Stand, stand
from voidbox_lab.errors import UserError, VoidboxError

log = logging.getLogger(__name__)

Measure = Callable[[Stand], Awaitable[list[Figure]]]

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
NAMES = tuple(MEASURES)
USUAL = tuple(name for name in NAMES if name != "claude-code")
"""What is measured unless something is asked for by name: claude-code is a download of 100 MB."""


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
        Unavailable: this machine lacks what boxes need.
    """
    for name in names:
        if name not in MEASURES:
            raise UserError(f"There is no benchmark {name!r}; there are {', '.join(NAMES)}.")
    async with stand(memory_mb, effort) as here:
        report = Report(here.machine())
        for name in names or USUAL:
            try:
                figures = await MEASURES[name](here)
            except Exception as error:
                report.failures.append(failure(name, error))
            else:
                report.figures += figures
                told(name, figures)
            await run_sync(here.clear)
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
