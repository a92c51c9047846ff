"""Telemetry explorer: CPU, memory, disk and network of a stage's box, and the model calls of the run, live."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from datetime import tzinfo
from typing import Any, cast

import panel as pn
from bokeh.models import ColumnDataSource, CrosshairTool, DataRange1d, HoverTool, NumeralTickFormatter

from voidbox_lab.errors import VoidboxError
from voidbox_lab.observe.across import RunFacts, calls_frame
from voidbox_lab.observe.frames import telemetry_frame
from voidbox_lab.observe.rates import RATE_COLUMNS, rates_frame
from voidbox_lab.spec import TERMINAL
from voidbox_lab.spec.events import Event, ModelCall, Telemetry
from voidbox_lab.widgets.dashboards import look
from voidbox_lab.widgets.dashboards.source import MAX_EVENTS, Runs
from voidbox_lab.widgets.dashboards.words import dollars, number, took, when

MAX_CALLS = 2000
SHOWN_CALLS = 100
HEIGHT = 168
_CHARTS = (
    ("CPU", "% of all vCPUs", (("cpu", "busy"),)),
    ("Memory", "MB", (("memory_mb", "used"), ("memory_total_mb", "in all"))),
    ("Disk", "MB/s", (("disk_read_mb_s", "read"), ("disk_write_mb_s", "written"))),
    ("Network", "kB/s", (("net_rx_kb_s", "received"), ("net_tx_kb_s", "sent"))),
)


class Story:
    """What is known of a run's telemetry and model calls: the last of them, bounded."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.after = 0
        self.first: int | None = None
        """The number of the first event that was looked at."""
        self.samples: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.calls: deque[Event] = deque(maxlen=MAX_CALLS)
        self.sampled = self.called = 0

    def add(self, events: Iterable[Event]) -> bool:
        """Take what follows; whether anything of it is shown."""
        before = (self.sampled, self.called)
        for event in events:
            self.first = self.first or event.seq
            self.after = event.seq
            if isinstance(event.body, Telemetry):
                self.sampled += 1
                self.samples.append(event)
            elif isinstance(event.body, ModelCall):
                self.called += 1
                self.calls.append(event)
        return before != (self.sampled, self.called)

    @property
    def stages(self) -> list[str]:
        """Those with samples, in the order of their first."""
        return list(dict.fromkeys(e.stage for e in self.samples if e.stage))


class Explorer:
    """The tab *Telemetry*."""

    def __init__(self, runs: Runs, zone: tzinfo) -> None:
        self._runs, self._zone = runs, zone
        self._facts: dict[str, RunFacts] = {}
        self._story = Story("")
        self._reading = asyncio.Lock()
        self._ended = False
        """Whether everything of the chosen run was read."""
        self._stage: str | None = None
        """The stage that is drawn."""
        self.run = look.select({}, "Run", 430)
        self.stage = look.select({}, "Stage", 220)
        self.run.param.watch(pn.io.with_lock(self._another_run), "value")
        self.stage.param.watch(self._another_stage, "value")
        self._source = ColumnDataSource({name: [] for name in ("at", *RATE_COLUMNS)})
        self._note, self._calls = look.html(), look.html(margin=(18, 0, 0, 0))
        self._grid = pn.GridBox(ncols=2, sizing_mode="stretch_width", visible=False)
        self.view = pn.Column(
            pn.Row(self.run, self.stage, margin=(0, 0, 12, 0)),
            self._note,
            self._grid,
            self._calls,
            sizing_mode="stretch_width",
        )

    def show(self, runs: tuple[RunFacts, ...]) -> None:
        """Offer these; what is chosen stays, else it is the newest that began."""
        self._facts = {run.id: run for run in runs}
        options = {_label(run, self._zone): run.id for run in runs}
        if options != self.run.options:
            chosen = self.run.value if self.run.value in self._facts else None
            began = (
                run.id for run in runs if any(stage.state not in {"queued", "skipped"} for stage in run.stages)
            )
            self.run.param.update(options=options, value=chosen or next(began, next(iter(self._facts), None)))

    async def refresh(self) -> None:
        """Read what is new of the chosen run."""
        async with self._reading:
            await self._read()

    async def _read(self) -> None:
        run = self.run.value or ""
        another = run != self._story.run
        if another:
            self._story, self._ended = Story(run), not run
        elif self._ended:
            return
        known, events = self._facts.get(run), []
        if run:
            try:
                events = await asyncio.to_thread(self._runs.events, run, self._story.after)
            except VoidboxError as e:
                # Read from its beginning next time.
                self._story, self._grid.visible, self._calls.object = Story(""), False, ""
                self._note.object = str(look.parts().trouble(e.message))
                return
            self._ended = known is None or known.state in TERMINAL
        if self._story.add(events) or another:
            self._draw()

    async def _another_run(self, _event: object) -> None:
        await self.refresh()

    def _another_stage(self, _event: object) -> None:
        # Neither what `_draw` itself has chosen, nor a stage of a run that is still being read.
        if self.stage.value != self._stage and self.stage.value in self._story.stages:
            self._draw()

    def _draw(self) -> None:
        story = self._story
        stages = story.stages
        self._stage = self.stage.value if self.stage.value in stages else next(iter(stages), None)
        if list(self.stage.options) != stages:
            # Its value need not change by that: stages of two runs may have the same name.
            self.stage.param.update(options={name: name for name in stages}, value=self._stage)
        import pandas as pd

        samples = telemetry_frame(e for e in story.samples if e.stage == self._stage)
        rates = rates_frame(samples)
        if len(rates):
            local = pd.DatetimeIndex(rates.index).tz_convert(self._zone).tz_localize(None)
            at = local.to_numpy().astype("datetime64[ms]").astype("int64").tolist()
            self._source.data = {"at": at, **{name: rates[name].tolist() for name in RATE_COLUMNS}}
            if not self._grid.objects:
                self._grid.objects = _charts(self._source)
        self._grid.visible = len(rates) > 0
        self._note.object = self._said(len(samples))
        self._calls.object = self._called()

    def _said(self, samples: int) -> str:
        story = self._story
        if not story.run:
            return str(look.parts().empty("No run", "Choose a longer time, or other states.", ""))
        if not samples:
            text = "A box sends a sample every few seconds once it has booted. Results of earlier runs have none."
            return str(look.parts().empty("No telemetry of this run", text, ""))
        if story.first is not None and story.first > 1:
            bound = f"Of the last {number(MAX_EVENTS)} events of this run; what was before is not shown."
            return str(look.parts().note([bound]))
        return ""

    def _called(self) -> str:
        story = self._story
        run = self._facts.get(story.run)
        frame = calls_frame([run] if run else [], list(story.calls)[-SHOWN_CALLS:], zone=self._zone)
        rows = [
            {
                "at": f"{call.at:%H:%M:%S}",
                "stage": call.stage or "",
                "model": call.model,
                "status": call.status or "broken",
                "first": took(call.first_byte_s),
                "took": took(call.duration_s),
                "input": number(call.input_tokens + call.cache_read_tokens + call.cache_write_tokens),
                "output": number(call.output_tokens),
                "cost": dollars(call.cost_usd),
            }
            for call in cast("Iterable[Any]", frame.itertuples())
        ]
        return str(look.parts().calls(rows, max(0, story.called - len(rows))))


def _charts(source: ColumnDataSource) -> list[pn.Column]:
    across, panes = DataRange1d(range_padding=0.02), []
    for title, unit, lines in _CHARTS:
        plot = look.chart(height=HEIGHT, y_format=NumeralTickFormatter(format="0,0.[0]"), x_range=across)
        for n, (column, _) in enumerate(lines):
            color = look.ACCENT if n == 0 else look.NEUTRAL if column.endswith("total_mb") else look.SECOND
            line = plot.line("at", column, source=source, color=color, line_width=1.6)
            if n == 0:
                if not column.endswith("_s"):  # rates begin with a gap
                    plot.varea("at", 0, column, source=source, fill_color=color, fill_alpha=0.10)
                values = [(label, f"@{name}{{0,0.[00]}}") for name, label in lines]
                tips = [("", "@at{%H:%M:%S}"), *values]
                plot.add_tools(
                    HoverTool(renderers=[line], tooltips=tips, formatters={"@at": "datetime"}, mode="vline"),
                    CrosshairTool(dimensions="height", line_color=look.NEUTRAL, line_alpha=0.6),
                )
        heading = look.html(str(look.parts().heading(title, unit, [label for _, label in lines], look.COLORS)))
        pane = pn.pane.Bokeh(plot, sizing_mode="stretch_width", height=HEIGHT, margin=0)
        panes.append(pn.Column(heading, pane, sizing_mode="stretch_width", margin=(0, 14, 12, 0)))
    return panes


def _label(run: RunFacts, zone: tzinfo) -> str:
    return f"{run.name or 'run'} · {when(run.created_at, zone)} · {run.state} · {run.id}"
