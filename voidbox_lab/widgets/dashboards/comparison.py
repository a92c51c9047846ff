"""Runs side by side: a list to choose from, and of those chosen what they did and where their specs differ."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import tzinfo
from typing import Any

import panel as pn
import panel.models.tabulator  # before the first page, which loads the scripts of what was imported by then
from bokeh.models import NumberFormatter

from voidbox_lab.errors import VoidboxError
from voidbox_lab.observe.across import RunFacts, runs_frame
from voidbox_lab.observe.compare import differences
from voidbox_lab.spec import TERMINAL, RunRecord, StageRecord, Tokens
from voidbox_lab.widgets.dashboards import look
from voidbox_lab.widgets.dashboards.source import Runs
from voidbox_lab.widgets.dashboards.words import dollars, number, took, when
from voidbox_lab.widgets.text import one_line

MAX_COMPARED = 6
MAX_STAGES = 60
"""Stages of a comparison that have a row."""
COLUMNS = {
    "run": "run",
    "name": "name",
    "state": "state",
    "begun": "begun",
    "seconds": "seconds",
    "stages": "stages",
    "tokens": "tokens",
    "cost_usd": "cost",
    "unpriced": "unpriced",
    "models": "models",
}
"""Columns of the list and what they are called; numbers are numbers, so that they can be sorted."""
_NUMBERS = {"seconds": "0,0.0", "stages": "0,0", "tokens": "0,0", "cost_usd": "$0,0.0000", "unpriced": "0,0"}
_WIDTHS = {"run": 160, "name": 130, "state": 100, "begun": 140, "seconds": 92, "stages": 84, "tokens": 92}


class Comparison:
    """The tab *Runs*."""

    def __init__(self, runs: Runs, zone: tzinfo) -> None:
        self._runs, self._zone = runs, zone
        self._listed: list[str] = []
        self._records: dict[str, RunRecord] = {}
        self._shown: list[RunRecord] = []
        right = dict.fromkeys(_NUMBERS, "right")
        self._table = pn.widgets.Tabulator(
            value=None, show_index=False, selectable="checkbox", pagination="local", page_size=12, disabled=True,
            titles=COLUMNS, theme="simple", layout="fit_columns",
            widths=_WIDTHS | {"cost_usd": 92, "unpriced": 92},
            text_align=right, header_align=right, stylesheets=[look.css("table")],
            formatters={name: NumberFormatter(format=f, nan_format="-") for name, f in _NUMBERS.items()},
            sizing_mode="stretch_width", margin=(0, 0, 14, 0),
        )  # fmt: skip
        self._table.param.watch(pn.io.with_lock(self._chosen), "selection")
        self._result = look.html(_ask(0))
        self.view = pn.Column(self._table, self._result, sizing_mode="stretch_width")

    def show(self, runs: tuple[RunFacts, ...]) -> None:
        """List these; those that were chosen and are among them stay so."""
        chosen = {self._listed[i] for i in self._table.selection if i < len(self._listed)}
        frame = runs_frame(runs, zone=self._zone).reset_index()
        frame["begun"] = frame["created"].dt.strftime("%Y-%m-%d %H:%M")
        frame["name"] = frame["name"].fillna("")
        # Nothing known of the cost, or a part of it.
        frame["cost_usd"] = frame["cost_usd"].where((frame["unpriced"] == 0) | (frame["cost_usd"] > 0))
        self._listed = list(frame["run"])
        frame = frame[list(COLUMNS)]
        if not frame.equals(self._table.value):  # else it would go back to its first page
            self._table.value = frame
        # How many stages the cost leaves out: mostly none.
        self._table.hidden_columns = [] if frame["unpriced"].any() else ["unpriced"]
        selection = [i for i, run in enumerate(self._listed) if run in chosen]
        if selection != self._table.selection:
            self._table.selection = selection

    async def refresh(self) -> None:
        """Read those again that are compared and had not ended."""
        if any(record.state not in TERMINAL for record in self._shown):
            await self._compare([record.id for record in self._shown])

    async def _chosen(self, _event: object) -> None:
        await self._compare([self._listed[i] for i in self._table.selection if i < len(self._listed)])

    async def _compare(self, ids: Sequence[str]) -> None:
        if len(ids) < 2:
            self._shown, self._result.object = [], _ask(len(ids))
            return
        try:
            self._shown = [await asyncio.to_thread(self._record, run) for run in ids[:MAX_COMPARED]]
        except VoidboxError as e:
            self._result.object = str(look.parts().trouble(e.message))
            return
        text = compared(self._shown, self._zone)
        if len(ids) > MAX_COMPARED:
            text += str(look.parts().note([f"The first {MAX_COMPARED} of the {len(ids)} chosen are compared."]))
        self._result.object = text

    def _record(self, run: str) -> RunRecord:
        kept = self._records.get(run)
        if kept is None or kept.state not in TERMINAL:
            kept = self._runs.record(run)
            self._records = dict([*self._records.items(), (run, kept)][-2 * MAX_COMPARED :])
        return kept


def compared(records: Sequence[RunRecord], zone: tzinfo | None = None) -> str:
    """HTML of runs side by side."""
    runs = [{"id": r.id, "title": r.spec.name or when(r.created_at, zone)} for r in records]
    rows, total = differences(records)
    groups = [{"name": "", "rows": _of_runs(records, zone)}, {"name": "Stages", "rows": _of_stages(records)}]
    return str(look.parts().comparison(runs, groups, rows, total))


def _of_runs(records: Sequence[RunRecord], zone: tzinfo | None) -> list[dict[str, Any]]:
    ran = [r.finished_at - r.created_at if r.finished_at is not None else None for r in records]
    tokens = [sum((s.tokens for s in r.stages.values()), Tokens()) for r in records]
    costs = [r.cost_usd for r in records]
    rows: list[tuple[str, list[dict[str, Any]]]] = [
        ("state", [{"text": r.state, "state": r.state} for r in records]),
        ("begun", [{"text": when(r.created_at, zone)} for r in records]),
        ("took", _least(ran, [took(s) for s in ran])),
        ("cost", _least(costs, [dollars(c) for c in costs])),
        ("tokens", [{"text": number(t.total), "note": f"{number(t.output)} out"} for t in tokens]),
        ("model calls", [{"text": f"{sum(s.turns for s in r.stages.values()):,}"} for r in records]),
        ("tool calls", [{"text": f"{sum(s.tool_calls for s in r.stages.values()):,}"} for r in records]),
        ("denied", [{"text": f"{sum(s.denied for s in r.stages.values()):,}"} for r in records]),
        ("answers", [{"text": _set(s.model_source for s in r.stages.values())} for r in records]),
        ("isolation", [{"text": _set(s.box and s.box.isolation for s in r.stages.values())} for r in records]),
        ("trouble", [{"text": one_line(r.trouble.message, 240) if r.trouble else ""} for r in records]),
    ]
    return [{"name": name, "cells": cells} for name, cells in rows if any(c["text"] for c in cells)]


def _of_stages(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(stage.box.name for r in records for stage in r.spec.stages))[:MAX_STAGES]
    return [{"name": name, "cells": [_stage(r.stages.get(name)) for r in records]} for name in names]


def _stage(stage: StageRecord | None) -> dict[str, Any]:
    if stage is None:
        return {"text": "-"}
    if stage.cached is not None:
        return {"text": stage.state, "state": stage.state, "note": "an earlier result"}
    facts = [took(stage.duration_s)] if stage.duration_s is not None else []
    if stage.turns or stage.tokens.total:
        facts += [f"{number(stage.tokens.total)} tokens", dollars(stage.cost_usd)]
    return {"text": stage.state, "state": stage.state, "note": " · ".join(facts)}


def _least(values: Sequence[float | None], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Cells, of which the least is marked, where they differ."""
    known = [v for v in values if v is not None]
    least = min(known) if len(set(known)) > 1 else None
    return [{"text": t, "best": v is not None and v == least} for v, t in zip(values, texts, strict=True)]


def _set(values: Any) -> str:
    return ", ".join(sorted({v for v in values if v})) or "-"


def _ask(chosen: int) -> str:
    text = "Choose two or more runs above to see them side by side." if not chosen else "Choose one more run."
    return str(look.parts().note([text]))
