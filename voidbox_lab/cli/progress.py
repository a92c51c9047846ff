"""A run on a terminal while it goes on: a line for each stage, renewed in place."""

from __future__ import annotations

import time
from collections import Counter

import anyio
from rich.align import AlignMethod
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from voidbox_lab.observe.quantities import cost, seconds
from voidbox_lab.widgets.display import Controls
from voidbox_lab.widgets.text import one_line
from voidbox_lab.widgets.transcript import Entry
from voidbox_lab.widgets.view_state import StageView, ViewState

RENEWALS_PER_S = 4
LINES_BESIDES = 4
"""Lines of the terminal that are left for others."""
COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "skipped": "yellow", "retrying": "yellow",
           "running": "bold"}  # fmt: skip
COLUMNS: tuple[AlignMethod, ...] = ("left", "left", "right", "right", "right")
"""Stage, state, tokens, cost, time; after them comes a note."""
WAITING = frozenset({"queued", "skipped"})


class ProgressSurface:
    """Shows a run on `console`, which is a terminal. See `voidbox_lab.widgets.display.Surface`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state: ViewState | None = None
        self._told = 0
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=RENEWALS_PER_S, transient=False
        )

    def open(self, state: ViewState) -> None:
        """Begin."""
        self._state = state
        self._live.start()

    def show(self, state: ViewState) -> None:
        """Keep the state for the next renewal; notices are printed above at once."""
        before = self._state.notices if self._state is not None else ()
        if state.notices is not before and state.notices:
            self._console.print(Text(state.notices[-1], style="yellow"))
        self._state = state

    def close(self, state: ViewState) -> None:
        """Leave the last state standing."""
        self._state = state
        self._live.stop()

    async def pump(self, controls: Controls) -> None:
        """Nothing to pace: Ctrl-C cancels."""
        await anyio.sleep_forever()

    def _render(self) -> RenderableType:
        return rendered(self._state, self._console.height - LINES_BESIDES) if self._state is not None else ""


def rendered(state: ViewState, height: int) -> RenderableType:
    """`state` in at most `height` lines, or five: of more stages those at work first, the others in numbers."""
    height = max(5, height)
    shown = list(state.stages.values())
    if len(shown) > height - 2:
        # Stable: among equals the order stays the declared one.
        shown = sorted(shown, key=lambda s: (s.over or s.state in WAITING, s.state != "failed"))[: height - 2]
    rows = [_row(stage) for stage in shown]
    widths = [max((row[i].cell_len for row in rows), default=0) for i in range(len(COLUMNS))]
    left = Counter(s.state for s in state.stages.values()) - Counter(s.state for s in shown)
    rest = [Text(f"… and {', '.join(f'{n} {s}' for s, n in sorted(left.items()))}", style="dim")] if left else []
    lines = (_line(row, widths) for row in rows)
    return Group(Text(f"run {state.run}: {state.state}", style="bold"), *lines, *rest)


def _line(row: tuple[Text, ...], widths: list[int]) -> Text:
    """One line, whose last cell gets what room is left. A table would take from the others for it."""
    for cell, width, align in zip(row, widths, COLUMNS, strict=False):
        cell.align(align, width)
    line = Text("  ").join(row)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _row(stage: StageView) -> tuple[Text, ...]:
    at = stage.state + (f" ({stage.attempt})" if stage.attempt > 1 else "")
    took = ""
    if stage.started_at is not None:
        took = seconds(max(0.0, (stage.finished_at or time.time()) - stage.started_at))
    spent = cost(stage.cost_usd, {stage.model_source}) if stage.turns else ""
    cells = (f"{stage.tokens.total:,} tokens" if stage.turns else "", spent, took, _note(stage))
    return (Text(stage.name), Text(at, style=COLOURS.get(stage.state, "")), *(Text(c, style="dim") for c in cells))


def _note(stage: StageView) -> str:
    if stage.trouble is not None:
        return one_line(stage.trouble.message, 200)
    if stage.queue:
        return stage.queue
    if stage.cached is not None:
        return f"cached from {stage.cached.run}"
    denied = f"{stage.doings.denied:,} denied" if stage.doings.denied else ""
    last = stage.entries[-1] if stage.entries and not stage.over else None
    if last is None:
        return denied
    denied = f"({denied}) " if denied else ""
    return denied + _last(last)


def _last(last: Entry) -> str:
    return f"> {last.name} {last.summary}" if last.kind == "tool" else one_line(last.text.text[-200:], 200)
