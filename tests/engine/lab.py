"""A runner over doubles: the engine as a whole, without a VM and without a daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from tests.engine.doubles import FakeBoxes, FakeSessions, host, says
from voidbox_lab.engine import Admission, Capacity, Journal, LocalExecutor, Runner, StageCache
from voidbox_lab.spec import Model, RunRecord, RunSpec, Stage, VoidBoxSpec
from voidbox_lab.spec.events import Event
from voidbox_lab.store import Artifacts, SqliteStore, rebuild

Script = Sequence[tuple[str, Any]]
ROOMY = Capacity(memory_mb=8192, vcpus=16)


def box(name: str, **options: Any) -> VoidBoxSpec:
    """An agent whose double plays the script of its name."""
    if "command" not in options:
        options = {"prompt": f"do {name}", "model": Model.parse("scripted:x"), **options}
    return VoidBoxSpec(name=name, **options)


def chain(*names: str, **options: Any) -> RunSpec:
    """Stages one after the other."""
    stages = tuple(Stage(box=box(n), needs=names[max(0, i - 1) : i]) for i, n in enumerate(names))
    return RunSpec(stages=stages, **options)


def at(stage: str, state: str) -> Callable[[RunRecord], bool]:
    """Whether a run's stage is in a state; for `Lab.until`."""
    return lambda record: record.stages[stage].state == state


async def identity(_box: VoidBoxSpec) -> str:
    """What every box runs on here."""
    return "sha256:image"


@dataclass
class Lab:
    """The runner, what is below it, and what it saw."""

    runner: Runner
    boxes: FakeBoxes
    sessions: FakeSessions
    admission: Admission
    scripts: dict[str, Script] = field(default_factory=dict)

    async def run(self, spec: RunSpec, timeout_s: float = 10) -> RunRecord:
        """Submit `spec` and wait for its end."""
        record = await self.runner.submit(spec)
        assert await self.runner.finished(record.id, timeout_s)
        return await self.runner.store.get_run(record.id)

    async def events(self, run: str) -> list[Event]:
        """All events of a run."""
        return await self.runner.store.read_events(run, limit=5000)

    async def until(self, run: str, check: Callable[[RunRecord], bool]) -> RunRecord:
        """The run's record once `check` holds."""
        with anyio.fail_after(5):
            while not check(record := await self.runner.store.get_run(run)):
                await anyio.sleep(0.01)
        return record


@asynccontextmanager
async def open_lab(root: Path, capacity: Capacity = ROOMY, **scripts: Script) -> AsyncIterator[Lab]:
    """A lab over the store in `root`; at the end no box is open, no token valid, and records are their events."""
    boxes, sessions = FakeBoxes(lambda name: lab.scripts.get(name, says(result=f"{name} done"))), FakeSessions()
    admission = Admission(capacity)
    store = await SqliteStore.open(root / "runs.sqlite")
    artifacts = await Artifacts.open(root / "artifacts")
    executor = LocalExecutor(host(boxes, sessions), admission)
    async with anyio.create_task_group() as tasks:
        boxes.tasks, boxes.log = tasks, sessions.log
        cache = StageCache(store, identity)
        async with Runner.serving(store, artifacts, Journal(store), executor, cache) as runner:
            lab = Lab(runner, boxes, sessions, admission, dict(scripts))
            yield lab
        tasks.cancel_scope.cancel()
    assert boxes.opened == boxes.closed, "a box was left open"
    assert not sessions.live, "a token was left valid"
    for record in await store.list_runs():
        events = await store.read_events(record.id, limit=5000)
        assert record == rebuild(record.id, record.spec, events, at=record.created_at)
    await store.aclose()
