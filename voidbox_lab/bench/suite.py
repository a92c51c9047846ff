"""The measurements by name, in the order they are made: one thing at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from voidbox_lab.bench import first_request, inside, starts
from voidbox_lab.bench.samples import Figure, Report
from voidbox_lab.bench.stand import Stand, stand
from voidbox_lab.errors import UserError

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
            figures = await MEASURES[name](here)
            report.figures += figures
            told(name, figures)
    return report
