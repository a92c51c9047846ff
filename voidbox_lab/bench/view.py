"""What a live run view costs: the fold beside the parsing that nobody can do without, messages out beside events
in, a stage of a million lines beside one of a thousand. No browser."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio

from voidbox_lab.bench.samples import Figure, Series, Unit
from voidbox_lab.bench.stand import Desk
from voidbox_lab.spec import Model, Pipeline, RunRecord, VoidBoxSpec
from voidbox_lab.spec.events import AgentLog, AgentText, Body, Event, ModelCall, Telemetry, ToolCall, ToolResult
from voidbox_lab.widgets.display import FLUSH_S, paced
from voidbox_lab.widgets.run_view import RunView
from voidbox_lab.widgets.view_state import ViewState, begin, fold

STAGES = 8
RATE = 10_000
"""Events per second of the run that is looked at."""
SECONDS = 3.0
MANY, FEW = 1_000_000, 1_000
"""Lines of a long stage and of a short one."""
CHUNK = 100
"""Events that come in one piece, as they do from a socket."""
AT_ONCE = 10_000
"""Events that are made before they are folded, so that making them is not measured."""
WANTED_FOLD_S = 0.5 / RATE
"""Half a core's, which leaves as much for the rest."""
WANTED_GROWTH = 1.5

_COUNTERS = (
    *("memory_used_kb", "memory_total_kb", "disk_total_kb", "disk_used_kb", "disk_read_bytes", "disk_write_bytes"),
    *("net_rx_bytes", "net_tx_bytes", "processes"),
)
_SAMPLE: dict[str, Any] = {"cpu": 0.5, "load1": 0.5, **dict.fromkeys(_COUNTERS, 5)}


async def showing(desk: Desk, *, lines: int = MANY, seconds: float = SECONDS) -> list[Figure]:
    """The fold, the flushes, and both after a million lines."""
    flushes = await _flushes(seconds * min(1.0, 2 * desk.effort))
    return [_fold(desk), *flushes, *_million(max(2 * FEW, int(lines * desk.effort)))]


def _record() -> RunRecord:
    model = Model.parse("scripted:echo")
    stages = [Pipeline.of(VoidBoxSpec(name=f"s{n}", prompt="?", model=model)) for n in range(STAGES)]
    return RunRecord(id="r", spec=Pipeline.beside(stages).run_spec(), created_at=0.0)


def _agents(count: int, first: int = 1) -> Iterator[Event]:
    """What agents do, a few stages at once: mostly text, some tools, samples and model calls."""
    for seq in range(first, first + count):
        turn, step = divmod(seq, 40 * STAGES)
        body: Body
        match step // STAGES:
            case 0:
                body = ToolCall(id=f"t{turn}", name="bash", input={"command": f"echo {seq}"})
            case 1:
                body = ToolResult(id=f"t{turn}", content=f"{seq}\n" * 20)
            case 2:
                body = Telemetry(**_SAMPLE, uptime_s=turn)
            case 3:
                body = ModelCall(request="r", model="m", source="scripted", status=200, cost_usd=0, duration_s=1)
            case _:
                body = AgentText(text=f"**word** {seq} of what an agent says ", block=turn)
        yield Event(seq=seq, run="r", at=seq / RATE, stage=f"s{seq % STAGES}", body=body)


def _lines(count: int, first: int) -> list[Event]:
    """Lines of one stage's log."""
    return [
        Event(seq=seq, run="r", at=seq / RATE, stage="s0", body=AgentLog(text=f"line {seq} of a program's log"))
        for seq in range(first, first + count)
    ]


def _fold(desk: Desk) -> Figure:
    folded, parsed = [], []
    for _ in range(desk.samples(5)):
        events = list(_agents(AT_ONCE))
        written = [event.model_dump_json() for event in events]
        began = time.process_time()
        for line in written:
            Event.model_validate_json(line)
        parsed.append((time.process_time() - began) / len(events))
        _, seconds = _timed(begin(_record()), events)
        folded.append(seconds)
    subject, floor = Series("fold of an event", "s", tuple(folded)), Series("its parsing", "s", tuple(parsed))
    return Figure("view", subject, floor, wanted=WANTED_FOLD_S)


def _timed(state: ViewState, events: list[Event]) -> tuple[ViewState, float]:
    """The state after `events`, and seconds of processor for each."""
    began = time.process_time()
    for event in events:
        state = fold(state, event)
    return state, (time.process_time() - began) / len(events)


@dataclass
class Browser:
    """Listens to a view as a browser does, and counts."""

    view: RunView
    messages: list[int] = field(default_factory=list)
    """Their sizes, in bytes."""

    def __post_init__(self) -> None:
        self.view.send = self.receive
        self.view._received(self.view, {"kind": "ready"}, None)
        self.messages.clear()

    def receive(self, content: dict[str, Any], _buffers: Any = None) -> None:
        """A message."""
        self.messages.append(len(json.dumps(content)))


async def _flushes(seconds: float) -> list[Figure]:
    """10,000 events a second in, for so long."""
    state = begin(_record())
    events = list(_agents(int(RATE * seconds)))
    browser = Browser(RunView(state, on_message=lambda _: None))
    began, cpu = time.monotonic(), time.process_time()
    async with anyio.create_task_group() as group:
        group.start_soon(paced, browser.view.flush)
        for event in events:
            state = fold(state, event)
            browser.view.show(state)
            if event.seq % CHUNK == 0:
                await anyio.sleep(max(0.0, began + event.seq / RATE - time.monotonic()))
        took, spent = time.monotonic() - began, time.process_time() - cpu
        group.cancel_scope.cancel()
    rate = f"of {len(events) / took:,.0f} events/s"
    out = Series(f"messages to a browser {rate}", "messages/s", (len(browser.messages) / took,))
    most = Series("most that are wanted", "messages/s", (1 / FLUSH_S,))
    core = Series(f"fold and messages {rate}", "% of a core", (100 * spent / took,))
    browser.view.close()
    return [Figure("view", out, most, wanted_ratio=1.0), Figure("view", core, wanted=100)]


def _million(lines: int) -> list[Figure]:
    """A stage's log, after the first thousand lines and after all."""
    state, marks, first = begin(_record()), {}, 1
    while first <= lines:
        count = min(AT_ONCE if first > FEW else FEW, lines - first + 1)
        state, seconds = _timed(state, _lines(count, first))
        first += count
        marks[first - 1] = (seconds, *_message(state, _lines(1, first)))
    (few, early), (many, late) = min(marks.items()), max(marks.items())
    units: tuple[tuple[str, Unit], ...] = (("fold", "s"), ("a message", "kB"), ("the whole view", "kB"))
    return [
        Figure(
            "view",
            Series(f"{what} after {many:,} lines", unit, (new,)),
            Series(f"after {few:,}", unit, (old,)),
            wanted_ratio=WANTED_GROWTH,
        )
        for (what, unit), new, old in zip(units, late, early, strict=True)
    ]


def _message(state: ViewState, more: list[Event]) -> tuple[float, float]:
    """Size of the message about one more line, and of the whole view, in kB."""
    view = RunView(state, on_message=lambda _: None)
    browser = Browser(view)
    view.show(_timed(state, more)[0])
    view.flush()
    whole = len(json.dumps(view.present()))
    view.close()
    return browser.messages[0] / 1024, whole / 1024
