"""What the engine adds to a stage: 1,000 stages of `true` in boxes in memory, beside the appends they cannot do
without."""

from __future__ import annotations

import gc
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from anyio.to_thread import run_sync

from voidbox_lab.bench import mock
from voidbox_lab.bench.samples import Figure, Series
from voidbox_lab.bench.stand import Desk
from voidbox_lab.engine import Admission, Capacity, Journal, LocalExecutor, Runner, StageCache
from voidbox_lab.engine.admission import BOX_OVERHEAD_MB
from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.spec import InputFile, Pipeline, RunRecord, RunSpec, Stage, VoidBoxSpec
from voidbox_lab.spec.mapping import expand, item_bytes
from voidbox_lab.store import Artifacts, Entry, SqliteStore, Store

STAGES = 1000
FEWER = 250
"""What growth is measured from."""
POOL = 16
WANTED_S = 0.003
WANTED_GROWTH = 1.3
RUN_S = 300.0
"""Bound on one run."""
MEMORY_MB = 192
ROOM = Capacity(memory_mb=POOL * (MEMORY_MB + BOX_OVERHEAD_MB), vcpus=POOL)
"""Fixed, so that machines compare: 16 boxes at once."""


def box(name: str) -> VoidBoxSpec:
    """A stage of `true`."""
    return VoidBoxSpec(name=name, command=mock.TRUE, memory_mb=MEMORY_MB)


def fan_out(stages: int) -> Pipeline:
    """All but one side by side, and one that needs them all."""
    beside = Pipeline.beside([Pipeline.of(box(f"s{n}")) for n in range(1, stages)])
    return beside.then(Pipeline.of(box("join")))


def chain(stages: int) -> Pipeline:
    """One after the other."""
    # Not by `then`, which copies what came before: that is quadratic, and happens before a run.
    boxes = (box(f"s{n}") for n in range(1, stages + 1))
    needs = ((), *((f"s{n}",) for n in range(1, stages)))
    return Pipeline(tuple(Stage(box=b, needs=n) for b, n in zip(boxes, needs, strict=True)), f"s{stages}")


@dataclass
class Engine:
    """A runner over boxes in memory and a store on the disk."""

    runner: Runner
    store: Store
    boxes: mock.MockBoxes
    artifacts: Artifacts

    async def mapped(self, stages: int) -> Pipeline:
        """One stage over items, `POOL` at work."""
        items: list[InputFile] = [await self.artifacts.put(item_bytes(n)) for n in range(stages)]
        return expand(box("map"), items, POOL)

    async def run(self, spec: RunSpec) -> tuple[float, RunRecord]:
        """Seconds from submission to end, and the record then.

        Raises:
            LimitExceeded, ProviderError: it did not end, or not well.
        """
        gc.collect()
        began = time.monotonic()
        run = (await self.runner.submit(spec)).id
        if not await self.runner.finished(run, RUN_S):
            await self.runner.cancel(run)
            raise LimitExceeded(
                f"{len(spec.stages)} stages took longer than {RUN_S:g} s.", limit="time", value=RUN_S, unit="s"
            )
        seconds = time.monotonic() - began
        record = await self.store.get_run(run)
        if record.state != "succeeded":
            why = record.trouble.message if record.trouble else record.state
            raise ProviderError(f"The run of {len(spec.stages)} stages did not succeed: {why}", cause="bench")
        return seconds, record

    async def appends(self, record: RunRecord) -> tuple[float, int]:
        """Seconds that the same events take to be appended one by one to another run of the same spec, and how
        many they are."""
        entries: list[Entry] = []
        while page := await self.store.read_events(record.id, after=len(entries), limit=5000):
            entries += [Entry(event.body, event.stage, event.at) for event in page]
        run = f"floor-{secrets.token_hex(6)}"
        gc.collect()
        began = time.monotonic()
        await self.store.create_run(run, record.spec, at=time.time())
        for entry in entries:
            await self.store.append(run, [entry])
        return time.monotonic() - began, len(entries)


@asynccontextmanager
async def engine(work: Path) -> AsyncIterator[Engine]:
    """An engine whose store is in `work`."""
    store = await SqliteStore.open(work / "runs.sqlite")
    try:
        artifacts = await Artifacts.open(work / "artifacts")
        boxes = mock.MockBoxes()
        executor = LocalExecutor(mock.host(boxes), Admission(ROOM))
        cache = StageCache(store, mock.identity)
        async with Runner.serving(store, artifacts, Journal(store), executor, cache) as runner:
            yield Engine(runner, store, boxes, artifacts)
        if boxes.opened != boxes.closed:
            raise ProviderError(f"{boxes.opened - boxes.closed} boxes were left open.", cause="bench")
    finally:
        await store.aclose()


Shape = Callable[["Engine", int], Awaitable[Pipeline]]


async def _fan_out(_engine: Engine, stages: int) -> Pipeline:
    return fan_out(stages)


async def _chain(_engine: Engine, stages: int) -> Pipeline:
    return chain(stages)


SHAPES: dict[str, Shape] = {
    "fan-out and join": _fan_out,
    "chain": _chain,
    f"map in a pool of {POOL}": Engine.mapped,
}


async def overhead(desk: Desk, stages: int = STAGES, fewer: int = FEWER) -> list[Figure]:
    """Each shape of pipeline, at two sizes in turn, run afresh and then from the stage cache."""
    figures = []
    for name, shape in SHAPES.items():
        figures += await _shape(desk, name, shape, stages, fewer)
        await run_sync(desk.clear)
    return figures


async def _shape(desk: Desk, name: str, shape: Shape, stages: int, fewer: int) -> list[Figure]:
    """All per stage, in seconds."""
    ran, few, floor, cached, events = [], [], [], [], []
    async with engine(desk.work) as lab:
        big, small = [(await shape(lab, n)).run_spec(fresh=True) for n in (stages, fewer)]
        for n in range(desk.samples(3) + 1):
            seconds_few, _ = await lab.run(small)
            seconds, record = await lab.run(big)
            floor_s, appended = await lab.appends(record)
            before = lab.boxes.opened
            again, _ = await lab.run(big.model_copy(update={"fresh": False}))
            if lab.boxes.opened != before:
                raise ProviderError("Stages ran again whose results are in the stage cache.", cause="bench")
            if n:  # the first fills caches of SQLite and Python
                ran.append(seconds / stages)
                few.append(seconds_few / fewer)
                floor.append(floor_s / stages)
                cached.append(again / stages)
                events.append(appended / stages)
    appends = Series("its events appended one by one", "s", tuple(floor))
    per_stage = Series(f"{name}, a stage of {stages}", "s", tuple(ran))
    return [
        Figure("engine", per_stage, appends, wanted=WANTED_S),
        Figure(
            "engine",
            replace(per_stage, name=f"{name}, growth"),
            Series(f"a stage of {fewer}", "s", tuple(few)),
            wanted_ratio=WANTED_GROWTH,
        ),
        Figure("engine", Series(f"{name}, a stage from the cache", "s", tuple(cached)), appends),
        Figure("engine", Series(f"{name}, events per stage", "events", tuple(events))),
    ]
