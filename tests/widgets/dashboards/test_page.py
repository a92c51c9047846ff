"""What a page shows, without a browser: figures, filters, tabs, guests' text, and what to do where nothing is."""

from __future__ import annotations

import math
import time
from datetime import UTC
from typing import Any

import anyio
import pytest

from tests.widgets.dashboards.samples import DAY, entries, month, spec
from voidbox_lab.errors import ProviderError
from voidbox_lab.observe.across import RunFacts, facts
from voidbox_lab.spec import RunRecord
from voidbox_lab.spec.events import AgentText, Event, ModelCall, RunChanged, StageChanged
from voidbox_lab.spec.run import Tokens, Trouble
from voidbox_lab.store import Entry
from voidbox_lab.store.fold import rebuild
from voidbox_lab.widgets.dashboards.comparison import compared
from voidbox_lab.widgets.dashboards.page import Page, filtered
from voidbox_lab.widgets.dashboards.source import Snapshot
from voidbox_lab.widgets.dashboards.words import dollars, number, when

pytestmark = pytest.mark.anyio
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m$$\\frac{1}{2}$$"


class Known:
    """Runs at hand, in the place of `source.Runs`."""

    def __init__(self, count: int = 0, *, state: str | None = None) -> None:
        self.records: dict[str, RunRecord] = {}
        self.told: dict[str, list[Event]] = {}
        for run, of, at, made in month(count, time.time()):
            self.add(run, of, at, made)
        if state is not None:
            of = spec(0)
            self.add("run-now", of, time.time() - 30, list(entries(0, of, time.time() - 30, state=state)))
        self.trouble: str | None = None
        self.asked: list[tuple[str, int]] = []

    def add(self, run: str, of: Any, at: float, made: Any) -> None:
        events = [Event(seq=n, run=run, at=e.at, stage=e.stage, body=e.body) for n, e in enumerate(made, 1)]
        self.told[run] = events
        self.records[run] = rebuild(run, of, events, at=at)

    @property
    def snapshot(self) -> Snapshot:
        newest = sorted(self.records.values(), key=lambda r: -r.created_at)
        return Snapshot(tuple(map(facts, newest)), len(self.records), time.time(), trouble=self.trouble)

    def refresh(self) -> Snapshot:
        return self.snapshot

    def record(self, run: str) -> RunRecord:
        return self.records[run]

    def events(self, run: str, after: int = 0) -> list[Event]:
        self.asked.append((run, after))
        return [event for event in self.told[run] if event.seq > after]


def asked(stage: str, cost: float | None) -> Entry:
    """A model call of `stage`; None: its price is not known."""
    call = ModelCall(
        request="r", model="m", source="live", status=200, tokens=Tokens(input=1), cost_usd=cost, duration_s=1
    )
    return Entry(call, stage, time.time() - 50)


def page(runs: Known) -> Page:
    return Page(runs, zone=UTC)  # type: ignore[arg-type]


def test_figures_of_what_the_filters_leave() -> None:
    """One run in nine failed; of 28 days the last seven are a quarter."""
    made = page(Known(36))
    assert "36</dd>" not in made._tiles.object
    assert ">36 <small>108 stages" in made._tiles.object
    assert "89 % <small>4 did not" in made._tiles.object
    made.state.value = "Failed"
    assert ">4 <small>12 stages" in made._tiles.object
    made.state.value, made.time.value = "All states", "7 days"
    assert ">9 <small>27 stages" in made._tiles.object


def test_filters_are_of_the_beginning_and_the_state() -> None:
    runs = tuple(
        RunFacts(f"run-{n}", None, state, at, None, ())
        for n, (state, at) in enumerate([("succeeded", 50.0), ("failed", 150.0), ("succeeded", 250.0)])
    )
    assert [r.id for r in filtered(runs, 100.0, None)] == ["run-1", "run-2"]
    assert [r.id for r in filtered(runs, None, frozenset({"succeeded"}))] == ["run-0", "run-2"]
    assert [r.id for r in filtered(runs, 150.0, frozenset({"failed"}))] == ["run-1"]


def test_without_runs_it_says_how_to_begin() -> None:
    made = page(Known())
    assert made._empty.visible
    assert not made._body.visible
    assert "%voidbox run analyst" in made._empty.object


def test_where_filters_leave_nothing_it_says_so() -> None:
    made = page(Known(9))
    made.state.value = "Cancelled"
    assert made._empty.visible
    assert "No run is like that" in made._empty.object
    made.state.value = "All states"
    assert not made._empty.visible


def test_cost_is_stacked_and_listed() -> None:
    made = page(Known(36))
    bars = made.spending._source.data
    assert len([name for name in bars if name.startswith("k")]) == 3, "the scripted model cost nothing"
    total = sum(s.cost_usd or 0 for r in made._runs.snapshot.runs for s in r.stages)
    assert sum(sum(bars[f"k{n}"]) for n in range(3)) == pytest.approx(total)
    assert "anthropic:claude-sonnet-4-5" in made.spending._table.object
    made.spending.by.value = "stage"
    assert ">strategist" in made.spending._table.object
    made.spending.measure.value = "tokens"
    assert sum(made.spending._source.data["k0"]) > 10_000


def test_new_figures_leave_the_chart_in_place() -> None:
    """Its data change, it is not drawn anew."""
    runs = Known(20)
    made = page(runs)
    plot = made.spending._plot
    of = spec(3)
    runs.add("run-new", of, time.time(), list(entries(3, of, time.time() - 60)))
    made.show(runs.snapshot)
    assert made.spending._plot is plot
    assert made.spending._pane.object is plot


def test_scripted_models_cost_nothing_and_the_page_says_where_to_look() -> None:
    runs = Known()
    of = spec(3)
    of = of.model_copy(update={"stages": of.stages[:1]})
    assert str(of.stages[0].box.model) == "scripted:quickstart"
    runs.add("run-1", of, time.time() - 100, list(entries(3, of, time.time() - 100)))
    made = page(runs)
    assert not made.spending._pane.visible
    assert "Their tokens are under Tokens" in made.spending._nothing.object


def test_what_has_no_price_is_counted_once_whatever_it_is_stacked_by() -> None:
    """A stage with two skills is one stage of the note."""
    runs = Known()
    of = spec(1)
    assert len(of.stages[1].box.skills) == 2
    runs.add("run-1", of, time.time() - 60, [asked("data", 0.5), asked("quant", None)])
    made = page(runs)
    for by in ("model", "stage", "skill"):
        made.spending.by.value = by
        assert "1 stage had calls without a known price" in made.spending._table.object, by


async def test_a_cost_that_is_a_part_is_listed_as_one() -> None:
    runs = Known(3)
    made = page(runs)
    made.tab.value = "Runs"
    await made.tick()
    table = made.comparison._table
    assert table.hidden_columns == ["unpriced"], "of nothing there is no column"
    runs.add("run-part", spec(1), time.time() - 50, [asked("data", 0.5), asked("quant", None)])
    runs.add("run-none", spec(1), time.time() - 60, [asked("data", None), asked("quant", None)])
    made.show(runs.snapshot)
    assert table.hidden_columns == []
    part, none, priced = table.value.iloc[:3].to_dict("records")
    assert (part["run"], part["cost_usd"], part["unpriced"]) == ("run-part", 0.5, 1)
    assert (none["run"], math.isnan(none["cost_usd"]), none["unpriced"]) == ("run-none", True, 2)
    assert priced["cost_usd"] > 0
    assert priced["unpriced"] == 0


async def test_telemetry_of_the_newest_run_and_of_another() -> None:
    runs = Known(6)
    made = page(runs)
    made.tab.value = "Telemetry"
    await made.tick()
    explorer = made.explorer
    newest = made._runs.snapshot.runs[0].id
    assert explorer.run.value == newest
    assert list(explorer.stage.options) == ["data", "quant", "strategist"]
    data = explorer._source.data
    assert len(data["at"]) == 12
    assert data["disk_read_mb_s"][1:] == [0.5] * 11
    assert explorer._calls.object.count("<tr>") == 1 + 6
    explorer.stage.value = "quant"
    assert explorer._source.data["cpu"] != data["cpu"]
    other = made._runs.snapshot.runs[3].id
    explorer.run.value = other
    await made.tick()
    assert runs.asked[-1] == (other, 0)


async def test_telemetry_of_a_run_with_other_stages_is_drawn_though_one_has_the_same_name() -> None:
    runs = Known(6)
    made = page(runs)
    made.tab.value = "Telemetry"
    await made.tick()
    explorer = made.explorer
    before = explorer._source.data["at"]
    failed = next(run.id for run in made._runs.snapshot.runs if run.state == "failed")
    explorer.run.value = failed
    await made.tick()
    assert list(explorer.stage.options) == ["data", "quant"]
    assert explorer.stage.value == "data"
    assert explorer._source.data["at"][-1] < before[0]
    assert explorer._calls.object.count("<tr>") == 1 + 4


async def test_what_has_ended_is_read_once_and_what_goes_on_from_where_it_was() -> None:
    runs = Known(2, state="running")
    made = page(runs)
    made.tab.value = "Telemetry"
    await made.tick()
    seen = len(runs.told["run-now"])
    await made.tick()
    assert runs.asked[0] == ("run-now", 0)
    assert runs.asked[-1] == ("run-now", seen)
    last = Event(seq=seen + 1, run="run-now", at=time.time(), body=RunChanged(state="failed"))
    runs.told["run-now"].append(last)
    runs.records["run-now"] = runs.records["run-now"].model_copy(update={"state": "failed"})
    made._seen = ()
    await made.tick()
    runs.asked.clear()
    await made.tick()
    assert runs.asked == []


async def test_readings_do_not_overlap() -> None:
    """The tick and the choice of another run may come at once; no sample is there twice."""
    runs = Known(6)
    made = page(runs)
    made.explorer.show(runs.snapshot.runs)
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(made.explorer.refresh)
    assert len(made.explorer._story.samples) == 36
    assert len({after for _, after in runs.asked}) == len(runs.asked)


async def test_runs_side_by_side() -> None:
    runs = Known(12)
    made = page(runs)
    made.tab.value = "Runs"
    await made.tick()
    comparison = made.comparison
    assert "Choose two or more" in comparison._result.object
    comparison._table.selection = [0, 1]
    await comparison._chosen(None)
    for run in comparison._listed[:2]:
        assert run in comparison._result.object
    assert "data.model.name" in comparison._result.object
    # A new run moves the list; what was chosen is chosen still.
    chosen = comparison._listed[:2]
    of = spec(3)
    runs.add("run-new", of, time.time(), list(entries(3, of, time.time())))
    made.show(runs.snapshot)
    assert [comparison._listed[i] for i in comparison._table.selection] == chosen


def test_what_guests_said_is_text() -> None:
    """In the comparison, the table of calls and the trouble of a reading; model names are the gateway's."""
    of = spec(0)
    trouble = Trouble(kind="command", message=HOSTILE)
    call = ModelCall(request="r", model=HOSTILE, source="live", status=200, tokens=Tokens(input=1), duration_s=1)
    bodies = [("data", StageChanged(state="failed", trouble=trouble)), ("data", call)]
    events = [Event(seq=n, run="run-1", at=1.0, stage=s, body=b) for n, (s, b) in enumerate(bodies, 1)]
    events.append(Event(seq=3, run="run-1", at=2.0, body=RunChanged(state="failed", trouble=trouble)))
    hostile = rebuild("run-1", of, events, at=0.0)
    runs = Known()
    runs.records["run-1"], runs.told["run-1"] = hostile, events
    runs.trouble = HOSTILE
    made = page(runs)
    made.time.value = "All time"
    made.explorer.show(runs.snapshot.runs)
    made.explorer._story.add(events)
    made.explorer._story.run = "run-unknown"
    made.explorer._draw()
    texts = [compared([hostile, hostile]), made._trouble.object, made.explorer._calls.object]
    for text in texts:
        assert "&lt;script&gt;" in text
        assert "<script" not in text
        assert "<img" not in text
    assert "\x1b" not in texts[0]


async def test_trouble_of_the_daemon_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Known(3)
    made = page(runs)
    made.tab.value = "Telemetry"

    def lost(*_: object) -> list[Event]:
        raise ProviderError("The connection to the daemon was lost.")

    monkeypatch.setattr(runs, "events", lost)
    made.explorer.run.value = made._runs.snapshot.runs[1].id
    await made.tick()
    assert "The connection to the daemon was lost." in made.explorer._note.object


def test_words() -> None:
    assert [dollars(v) for v in (None, float("nan"), 0, 0.00001, 0.0042, 12.4, 1204.2)] == [
        *("unpriced", "unpriced", "$0", "<$0.0001", "$0.0042", "$12.40", "$1,204"),
    ]
    assert [number(v) for v in (0, 812, 41_200, 1_250_000, 3.4e9)] == ["0", "812", "41,200", "1.2 M", "3.4 G"]
    assert when(14 * DAY + 5 * 3600, UTC) == "15 Jan 05:00"


async def test_the_list_of_runs_stays_where_it_is_while_nothing_is_new() -> None:
    """Its place and order are the reader's."""
    runs = Known(30)
    made = page(runs)
    made.tab.value = "Runs"
    await made.tick()
    before = made.comparison._table.value
    made._seen = ()
    await made.tick()
    assert made.comparison._table.value is before


async def test_words_alone_draw_nothing_anew() -> None:
    """A stage that streams text costs the page no chart."""
    runs = Known(2, state="running")
    made = page(runs)
    made.tab.value = "Telemetry"
    await made.tick()
    await made.tick()
    data = made.explorer._source.data
    seen = len(runs.told["run-now"])
    runs.told["run-now"].append(
        Event(seq=seen + 1, run="run-now", at=time.time(), stage="strategist", body=AgentText(text="word"))
    )
    await made.tick()
    assert made.explorer._story.after == seen + 1
    assert made.explorer._source.data is data
