"""Cost over time: bars of each hour, day or week, stacked by model, skill or stage, and what each took in all."""

from __future__ import annotations

from datetime import tzinfo
from typing import TYPE_CHECKING, Any

import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d

from voidbox_lab.observe.across import (
    MAX_KEYS,
    OTHER,
    By,
    Measure,
    Period,
    RunFacts,
    fitting_period,
    over_time,
    run_stages_frame,
    shares,
)
from voidbox_lab.observe.quantities import count
from voidbox_lab.widgets.dashboards import look
from voidbox_lab.widgets.dashboards.words import dollars, number

if TYPE_CHECKING:
    import pandas as pd

HEIGHT = 330
_MS: dict[Period, float] = {"hour": 3.6e6, "day": 8.64e7, "week": 6.048e8}
_LABEL: dict[Period, str] = {"hour": "%-d %b, %H:00", "day": "%a %-d %b", "week": "week of %-d %b"}


class Spending:
    """The tab *Cost*."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self.by = look.choice({"Model": "model", "Skill": "skill", "Stage": "stage"}, "model", "Stacked by")
        self.measure = look.choice({"Cost": "cost_usd", "Tokens": "tokens"}, "cost_usd", "Measure")
        self._pane = pn.pane.Bokeh(sizing_mode="stretch_width", height=HEIGHT, margin=0)
        self._nothing = look.html(visible=False, height=HEIGHT)
        self._table = look.html(width=430, sizing_mode=None, margin=(0, 0, 0, 28))
        self._drawn: tuple[Any, ...] = ()
        self._source = ColumnDataSource()
        self._plot: Any = None
        self.view = pn.Column(
            pn.Row(self.by, self.measure, margin=(0, 0, 14, 0)),
            pn.FlexBox(
                pn.Column(
                    self._pane, self._nothing,
                    sizing_mode="stretch_width", margin=0, min_width=420, styles={"flex": "1"},
                ),
                self._table,
                flex_wrap="wrap", align_items="flex-start", sizing_mode="stretch_width",
            ),
            sizing_mode="stretch_width",
        )  # fmt: skip

    def show(self, runs: tuple[RunFacts, ...], since: float | None, now: float) -> None:
        """What these runs took, on an axis from `since` (of the first of them, if None) to `now`."""
        by: By = self.by.value
        measure: Measure = self.measure.value
        stages = run_stages_frame(runs, zone=self._zone)
        begin = since if since is not None else min((run.created_at for run in runs), default=now)
        period = fitting_period(now - begin)
        table = over_time(stages, by, period, measure)
        table = table.loc[:, table.sum() > 0]
        totals = shares(stages, by)
        colors = _colors(table, totals)
        some = not table.empty
        self._pane.visible, self._nothing.visible = some, not some
        if some:
            self._draw(table, colors, period, measure, begin, now)
        else:
            self._nothing.object = _nothing(totals, measure)
        # Not of `totals`, where a stage with several skills counts once for each.
        unpriced = int(stages["cost_usd"].isna().sum())
        self._table.object = _shares(totals, colors, by, measure, unpriced)

    def _draw(
        self,
        table: pd.DataFrame,
        colors: dict[str, str],
        period: Period,
        measure: Measure,
        begin: float,
        now: float,
    ) -> None:
        width = _MS[period]
        data: dict[str, Any] = {f"k{n}": table[key].tolist() for n, key in enumerate(table.columns)}
        starts = table.index.to_numpy().astype("datetime64[ms]").astype("int64")
        data["x"] = (starts + width / 2).tolist()
        data["when"] = [moment.strftime(_LABEL[period]) for moment in table.index]
        data["total"] = [_amount(value, measure) for value in table.sum(axis=1)]
        data |= {f"t{n}": [_amount(v, measure) for v in table[key]] for n, key in enumerate(table.columns)}
        shape = (period, measure, tuple(table.columns))
        if self._drawn != shape:
            self._source = ColumnDataSource(data)
            self._plot = _bars(self._source, list(table.columns), colors, width, measure)
            self._drawn = shape
            self._range(begin, now, width)
            self._pane.object = self._plot
        else:
            self._source.data = data
            self._range(begin, now, width)

    def _range(self, begin: float, now: float, width: float) -> None:
        import pandas as pd

        ends = pd.to_datetime([begin, now], unit="s", utc=True).tz_convert(self._zone).tz_localize(None)
        start, end = ends.to_numpy().astype("datetime64[ms]").astype("int64")
        self._plot.x_range.start, self._plot.x_range.end = start - width, end + width / 2


def _bars(
    source: ColumnDataSource, keys: list[str], colors: dict[str, str], width: float, measure: Measure
) -> Any:
    dollars_or_tokens = "$0,0.00[00]" if measure == "cost_usd" else "0.[0]a"
    plot = look.chart(
        height=HEIGHT, y_format=NumeralTickFormatter(format=dollars_or_tokens), x_range=Range1d(0, 1)
    )
    bars = plot.vbar_stack(
        [f"k{n}" for n in range(len(keys))], x="x", width=width * 0.78, source=source, line_color=None,
        fill_color=[colors[key] for key in keys],
    )  # fmt: skip
    for n, (bar, key) in enumerate(zip(bars, keys, strict=True)):
        # The label is written as text; only `@` names of columns of ours are filled in.
        plot.add_tools(
            HoverTool(renderers=[bar], tooltips=[("", "@when"), (key, f"@t{n}"), ("together", "@total")])
        )
    return plot


def _colors(table: pd.DataFrame, totals: pd.DataFrame) -> dict[str, str]:
    """By name: as the bars have it, and what is not among them the last one."""
    shown = [key for key in table.columns if key != OTHER or OTHER in totals.index]
    found = {key: look.COLORS[min(n, len(look.COLORS) - 1)] for n, key in enumerate(shown)}
    return dict.fromkeys(totals.index, look.COLORS[-1]) | {OTHER: look.COLORS[-1]} | found


def _shares(totals: pd.DataFrame, colors: dict[str, str], by: By, measure: Measure, unpriced: int) -> str:
    totals = totals.sort_values(measure, ascending=False, kind="stable")
    largest = float(totals[measure].max()) if len(totals) else 0.0
    rows = [
        {
            "name": key,
            "color": colors[key],
            "percent": round(100 * getattr(row, measure) / largest, 1) if largest else 0,
            "cost": "unpriced" if row.unpriced == row.stages else dollars(row.cost_usd),
            "tokens": number(row.tokens),
            "stages": f"{row.stages:,}",
        }
        for key, row in zip(totals.index[: 3 * MAX_KEYS], totals[: 3 * MAX_KEYS].itertuples(), strict=True)
    ]
    notes = []
    if len(totals) > len(rows):
        notes.append(f"{len(totals) - len(rows)} more are not listed.")
    if by == "skill" and len(totals):
        notes.append("What a stage with several skills took is divided among them in equal parts.")
    if unpriced:
        notes.append(f"{count(unpriced, 'stage')} had calls without a known price; they are in no bar of cost.")
    return str(look.parts().shares(by, rows, notes)) if rows else ""


def _nothing(totals: pd.DataFrame, measure: Measure) -> str:
    if measure == "cost_usd" and len(totals) and float(totals["tokens"].sum()) > 0:
        text = "Scripted and local models cost nothing. Their tokens are under Tokens."
        return str(look.parts().empty("Nothing was paid for in this time", text, ""))
    return str(look.parts().empty("No model was asked in this time", "Choose a longer time, or other states.", ""))


def _amount(value: float, measure: Measure) -> str:
    return dollars(value) if measure == "cost_usd" else f"{number(value)} tokens"
