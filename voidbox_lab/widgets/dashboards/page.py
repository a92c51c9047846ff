"""A page: filters, what they leave in figures, and three tabs. Only the tab in sight is kept up to date."""

from __future__ import annotations

import asyncio
import statistics
import time
from datetime import datetime, tzinfo

import panel as pn

from voidbox_lab.observe.across import RunFacts
from voidbox_lab.observe.quantities import count
from voidbox_lab.spec import TERMINAL
from voidbox_lab.widgets.dashboards import look
from voidbox_lab.widgets.dashboards.comparison import Comparison
from voidbox_lab.widgets.dashboards.source import Runs, Snapshot
from voidbox_lab.widgets.dashboards.spending import Spending
from voidbox_lab.widgets.dashboards.telemetry import Explorer
from voidbox_lab.widgets.dashboards.words import dollars, number, took

TICK_MS = 1000
"""How often a page looks whether it is time; `source` says when it is."""
DAY = 86400.0
TIMES = {"24 hours": DAY, "7 days": 7 * DAY, "30 days": 30 * DAY, "90 days": 90 * DAY, "All time": None}
STATES = {
    "All states": None,
    "Running": frozenset({"queued", "running", "paused", "interrupted"}),
    "Succeeded": frozenset({"succeeded"}),
    "Failed": frozenset({"failed"}),
    "Cancelled": frozenset({"cancelled"}),
}
FIRST_RUN = """\
%load_ext voidbox_lab

%%voidbox stage analyst --model scripted:quickstart
Which of these five stocks had the best risk-adjusted return?

%voidbox run analyst --input stocks.csv"""


class Page:
    """What one reader sees. `view` is a Panel object."""

    def __init__(self, runs: Runs, *, zone: tzinfo | None = None) -> None:
        self._runs = runs
        self._zone = zone or datetime.now().astimezone().tzinfo
        assert self._zone is not None
        self._seen: tuple[object, ...] = ()
        self.time = look.choice(list(TIMES), "30 days", "Time")
        self.state = look.choice(list(STATES), "All states", "State")
        self._live = look.html(sizing_mode=None, styles={"margin-left": "auto"})
        self._trouble, self._tiles = look.html(visible=False), look.html(margin=(14, 0, 18, 0))
        self._empty = look.html(visible=False, margin=(18, 0))
        self.spending = Spending(self._zone)
        self.comparison = Comparison(runs, self._zone)
        self.explorer = Explorer(runs, self._zone)
        self._views = {
            "Cost": self.spending.view,
            "Runs": self.comparison.view,
            "Telemetry": self.explorer.view,
        }
        self.tab = look.tabs(list(self._views), "View")
        self._body = pn.Column(sizing_mode="stretch_width", margin=(18, 0, 0, 0))
        bar = pn.FlexBox(
            self.time, self.state, self._live,
            align_items="center", gap="8px 0px", margin=(10, 0, 0, 0), sizing_mode="stretch_width",
        )  # fmt: skip
        self.view = pn.Column(
            bar, self._trouble, self._tiles, self._empty, self.tab, self._body, sizing_mode="stretch_width"
        )
        for widget in (self.time, self.state, self.spending.by, self.spending.measure):
            widget.param.watch(lambda _: self.show(self._runs.snapshot), "value")
        self.tab.param.watch(pn.io.with_lock(self._another_tab), "value")
        self.show(runs.snapshot)
        self._body.objects = [self._views[self.tab.value]]

    async def tick(self) -> None:
        """Read again if it is time, and show what is new."""
        snapshot = await asyncio.to_thread(self._runs.refresh)
        self.show(snapshot)
        await self._refresh_tab()

    def show(self, snapshot: Snapshot) -> None:
        """Bring what is in sight up to `snapshot` and the filters."""
        now = time.time()
        self._live.object = str(look.parts().live(snapshot.active, snapshot.more, number(len(snapshot.runs))))
        self._trouble.visible = snapshot.trouble is not None
        self._trouble.object = str(look.parts().trouble(snapshot.trouble or ""))
        choices = (self.time.value, self.state.value, self.spending.by.value, self.spending.measure.value)
        seen = (snapshot.version, *choices, self.tab.value, int(now // 60))
        if seen == self._seen:
            return
        self._seen = seen
        seconds = TIMES[self.time.value]
        since = now - seconds if seconds is not None else None
        runs = filtered(snapshot.runs, since, STATES[self.state.value])
        self._empty.visible = not runs
        self.tab.visible = self._body.visible = self._tiles.visible = bool(runs)
        if not runs:
            self._empty.object = _empty(snapshot)
            return
        self._tiles.object = _tiles(runs)
        if self.tab.value == "Cost":
            self.spending.show(runs, since, now)
        elif self.tab.value == "Runs":
            self.comparison.show(runs)
        else:
            self.explorer.show(runs)

    async def _another_tab(self, _event: object) -> None:
        # Filled before it is shown: a table that is told its rows while the browser builds it loses them.
        self.show(self._runs.snapshot)
        self._body.objects = [self._views[self.tab.value]]
        await self._refresh_tab()

    async def _refresh_tab(self) -> None:
        if self.tab.value == "Runs":
            await self.comparison.refresh()
        elif self.tab.value == "Telemetry":
            await self.explorer.refresh()


def filtered(
    runs: tuple[RunFacts, ...], since: float | None, states: frozenset[str] | None
) -> tuple[RunFacts, ...]:
    """Those begun since then, and in one of these states; None: all."""
    return tuple(
        run
        for run in runs
        if (since is None or run.created_at >= since) and (states is None or run.state in states)
    )


def _tiles(runs: tuple[RunFacts, ...]) -> str:
    stages = [stage for run in runs for stage in run.stages]
    ended = [run for run in runs if run.state in TERMINAL]
    good = sum(run.state == "succeeded" for run in ended)
    ran = [run.finished_at - run.created_at for run in ended if run.finished_at is not None]
    unpriced = sum(stage.cost_usd is None for stage in stages)
    tokens = [stage.tokens for stage in stages]
    items = [
        {
            "name": "Cost",
            "value": dollars(sum(stage.cost_usd or 0.0 for stage in stages)),
            "note": f"+ {unpriced} unpriced" if unpriced else "",
        },
        {
            "name": "Tokens",
            "value": number(sum(t.total for t in tokens)),
            "note": f"{number(sum(t.output for t in tokens))} out",
        },
        {"name": "Runs", "value": f"{len(runs):,}", "note": count(len(stages), "stage")},
        {
            "name": "Succeeded",
            "value": f"{100 * good / len(ended):.0f} %" if ended else "-",
            "note": f"{len(ended) - good:,} did not" if ended else "",
        },
        {"name": "Median time", "value": took(statistics.median(ran)) if ran else "-", "note": ""},
    ]
    return str(look.parts().tiles(items))


def _empty(snapshot: Snapshot) -> str:
    if snapshot.runs:
        return str(look.parts().empty("No run is like that", "Choose a longer time, or other states.", ""))
    text = "Runs of all notebooks, scripts and of the command line appear here by themselves. A first one:"
    return str(look.parts().empty("No runs yet", text, FIRST_RUN))
