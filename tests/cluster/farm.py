"""A scheduler and workers as processes of their own, and a runner that uses them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from tests.engine.lab import at
from voidbox_lab.cluster import DaskExecutor
from voidbox_lab.engine import Journal, Runner, StageCache
from voidbox_lab.spec import RunRecord, RunSpec, VoidBoxSpec
from voidbox_lab.spec.events import Event
from voidbox_lab.store import Artifacts, SqliteStore, rebuild

ROOT = Path(__file__).parent.parent.parent
START_S = 60.0


@dataclass
class Farm:
    """The processes, and what the workers' boxes said."""

    root: Path
    scheduler: subprocess.Popen[bytes] | None = None
    address: str = ""
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    def start_scheduler(self) -> None:
        """Start it on a port of its choice; `address` is where."""
        file = self.root / f"scheduler-{time.monotonic_ns()}.json"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
        command += ["--no-dashboard", "--scheduler-file", str(file)]
        self.scheduler = self._start(command, "scheduler")
        self.address = _soon(lambda: json.loads(file.read_text())["address"] if file.exists() else None)

    def start_worker(self, memory_mb: int = 4096, vcpus: int = 4, lease_s: float = 20.0, **env: str) -> Any:
        """Start one; it says `joined` in its log once it is a worker."""
        command = [
            sys.executable,
            "-m",
            "tests.cluster.worker",
            self.address,
            str(memory_mb),
            str(vcpus),
            str(lease_s),
        ]
        worker = self._start(command, f"worker-{len(self.workers)}", **env)
        self.workers.append(worker)
        return worker

    def start_daemon(self, root: Path, stage: str) -> subprocess.Popen[bytes]:
        """A process that runs `stage`, of 32 GiB, and does not end by itself."""
        command = [sys.executable, "-m", "tests.cluster.dying", self.address, str(root), stage]
        daemon = self._start(command, "daemon")
        self.others.append(daemon)
        return daemon

    def _start(self, command: list[str], name: str, **env: str) -> subprocess.Popen[bytes]:
        told = {"VOIDBOX_TEST_TOLD": str(self.told), "VOIDBOX_HOME": str(self.root / "home")}
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **told, **self.env, **env}, stdout=log, stderr=log
            )

    @property
    def told(self) -> Path:
        """Where boxes leave their lines."""
        return self.root / "told.jsonl"

    def lines(self, pid: int | None = None) -> list[dict[str, Any]]:
        """What boxes left there, of one worker or of all."""
        text = self.told.read_text() if self.told.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if pid is None or line["pid"] == pid]

    def open(self) -> int:
        """How many boxes of living workers are open."""
        living = {w.pid for w in self.workers if w.poll() is None}
        lines = [line for line in self.lines() if line["pid"] in living]
        return sum("open" in line for line in lines) - sum("closed" in line for line in lines)

    def end(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        """Signal one and wait for its end."""
        process.send_signal(number)
        process.wait(timeout=30)

    def stop(self) -> None:
        """End what still runs."""
        for process in (*self.others, *self.workers, *([self.scheduler] if self.scheduler else [])):
            if process.poll() is None:
                self.end(process)


def _soon(look: Any) -> Any:
    end = time.monotonic() + START_S
    while (found := look()) is None:
        assert time.monotonic() < end, "it did not start"
        time.sleep(0.05)
    return found


@contextmanager
def open_farm(root: Path) -> Iterator[Farm]:
    """A scheduler without workers."""
    farm = Farm(root)
    try:
        farm.start_scheduler()
        yield farm
    finally:
        farm.stop()


@dataclass
class House:
    """A runner over a `DaskExecutor`."""

    runner: Runner
    executor: DaskExecutor
    artifacts: Artifacts

    async def run(self, spec: RunSpec, timeout_s: float = 30) -> RunRecord:
        """Submit `spec` and wait for its end."""
        record = await self.runner.submit(spec)
        assert await self.runner.finished(record.id, timeout_s), "the run did not end"
        return await self.runner.store.get_run(record.id)

    async def bodies(self, run: str, stage: str | None = None) -> list[Any]:
        """The events' bodies, of one stage or of all."""
        events: list[Event] = await self.runner.store.read_events(run, limit=5000)
        return [e.body for e in events if stage is None or e.stage == stage]

    async def until(self, run: str, stage: str, state: str, timeout_s: float = 20) -> RunRecord:
        """The record once a stage is in a state."""
        with anyio.fail_after(timeout_s):
            while not at(stage, state)(record := await self.runner.store.get_run(run)):
                await anyio.sleep(0.02)
        return record

    async def workers(self, count: int) -> None:
        """Wait until so many workers for boxes are known."""
        with anyio.fail_after(START_S):
            while self.executor._cluster.fitting({}) != count:
                await anyio.sleep(0.05)


@asynccontextmanager
async def open_house(root: Path, address: str) -> AsyncIterator[House]:
    """A house over a store of its own; at its end records are what their events say."""

    async def identity(_box: VoidBoxSpec) -> str:
        return "sha256:image"

    def adapter(name: str) -> Any:
        return None

    root.mkdir(exist_ok=True)
    store = await SqliteStore.open(root / "runs.sqlite")
    artifacts = await Artifacts.open(root / "artifacts")
    async with (
        DaskExecutor.open(address, adapter, identity) as executor,
        Runner.serving(store, artifacts, Journal(store), executor, StageCache(store, identity)) as runner,
    ):
        yield House(runner, executor, artifacts)
        await runner.shutdown(30)
    for record in await store.list_runs():
        events = await store.read_events(record.id, limit=5000)
        assert record == rebuild(record.id, record.spec, events, at=record.created_at)
    await store.aclose()
