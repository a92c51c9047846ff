"""What it costs to follow a run: many readers of one event stream of a daemon over boxes in memory.

The readers are processes of their own, so that their cost is not the daemon's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from voidbox_lab.bench import mock, mock_daemon, reader_process
from voidbox_lab.bench.leash import in_thread, leashed
from voidbox_lab.bench.samples import Figure, Series, quantile
from voidbox_lab.bench.stand import Desk
from voidbox_lab.client import Client
from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Pipeline, RunRecord, RunSpec, VoidBoxSpec

READERS = 50
PROCESSES = 2
RATE = 10_000
"""Events per second that the run emits."""
SECONDS = 3.0
START_S = 30.0
READ_S = 240.0
"""Bound on all that readers read, in seconds."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Followed:
    """What readers saw, and what the daemon took for it."""

    events: int
    """Of each reader."""
    seconds: float
    """From the first ask to the last byte of the last reader."""
    cpu_s: float
    """Of the daemon's processor."""
    lag_s: float
    """The 95th percentile of the slowest reader."""


async def following(
    desk: Desk, readers: int = READERS, rate: int = RATE, seconds: float = SECONDS
) -> list[Figure]:
    """50 readers, one, and none of a run that emits 10,000 events a second; and 50 of prepared bytes."""
    return await in_thread(_following, desk, readers, rate, seconds)


def _following(desk: Desk, readers: int, rate: int, seconds: float) -> list[Figure]:
    many, one, raw, none = [], [], [], []
    with daemon(desk.work) as (settings, pid), Client(settings, start=False) as client:
        gateway = settings.runtime / "gateway.sock"
        for n in range(desk.samples(3) + 1):
            none_s = _cpu_of_run(client, pid, rate, seconds)
            alone = _follow(client, settings.socket, pid, 1, rate, seconds)
            all_ = _follow(client, settings.socket, pid, readers, rate, seconds)
            prepared = read(gateway, pid, readers, partial("/{}".format, all_.events))
            if n:
                none.append(none_s)
                one.append(alone)
                many.append(all_)
                raw.append(prepared)
    per = [(f.cpu_s - base) / f.events / readers for f, base in zip(many, none, strict=True)]
    per_one = [(f.cpu_s - base) / f.events for f, base in zip(one, none, strict=True)]
    per_raw = Series(f"prepared bytes, {readers} readers", "s", tuple(f.cpu_s / f.events / readers for f in raw))
    delivered = [readers * f.events / f.seconds for f in many]
    floor = tuple(readers * f.events / f.seconds for f in raw)
    note = f"{readers} readers of {rate} events a second; at most {readers * rate} can be asked for"
    return [
        Figure(
            "readers",
            Series(f"delivered to {readers} readers", "events/s", tuple(delivered)),
            Series("prepared bytes", "events/s", floor),
            note=note,
        ),
        Figure(
            "readers",
            Series(f"lag of the slowest of {readers} (p95)", "s", tuple(f.lag_s for f in many)),
            Series("of one reader alone", "s", tuple(f.lag_s for f in one)),
        ),
        Figure("readers", Series(f"CPU per event and reader, {readers}", "s", tuple(per)), per_raw),
        Figure("readers", Series("CPU per event and reader, one alone", "s", tuple(per_one)), per_raw),
        Figure(
            "readers",
            Series("CPU per event that nobody reads", "s", tuple(base / (rate * seconds) for base in none)),
        ),
    ]


def _spec(rate: int, seconds: float) -> RunSpec:
    box = VoidBoxSpec(name="ticks", command=mock.ticks(rate, seconds))
    return Pipeline.of(box).run_spec(fresh=True)


def _cpu_of_run(client: Client, pid: int, rate: int, seconds: float) -> float:
    """The daemon's CPU seconds for a run that nobody follows."""
    before = cpu_s(pid)
    run = client.submit(_spec(rate, seconds)).id
    deadline = time.monotonic() + READ_S
    while (record := client.run(run)).state != "succeeded":
        if record.finished_at is not None or time.monotonic() > deadline:
            raise ProviderError(f"The run of {rate:g} events a second is {record.state}.", cause="bench")
        time.sleep(0.2)
    return cpu_s(pid) - before


def _follow(client: Client, socket: Path, pid: int, readers: int, rate: int, seconds: float) -> Followed:
    runs: list[RunRecord] = []

    def begin() -> str:
        runs.append(client.submit(_spec(rate, seconds)))
        return f"/v1/runs/{runs[0].id}/events"

    seen = read(socket, pid, readers, begin, numbered=True)
    # The lines, and what is said of the stage and the run.
    if seen.events < rate * seconds:
        raise ProviderError(f"Readers saw {seen.events} events of {rate * seconds:g}.", cause="bench")
    return seen


def read(socket: Path, pid: int, readers: int, begin: Callable[[], str], *, numbered: bool = False) -> Followed:
    """Start readers of the path that `begin` returns, in processes, and wait for their ends."""
    processes = min(PROCESSES, readers)
    with ExitStack() as stack:
        started = []
        for n in range(processes):
            share = readers // processes + (n < readers % processes)
            command = [sys.executable, "-I", reader_process.__file__, str(socket), str(share)]
            started.append(stack.enter_context(leashed(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)))
        for process in started:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise ProviderError("A process of readers did not start.", cause="bench")
        before, began = cpu_s(pid), time.time()
        path = f"{begin()}\n".encode()
        for process in started:
            assert process.stdin is not None
            process.stdin.write(path)
            process.stdin.flush()
        said: list[dict[str, Any]] = []
        try:
            for process in started:
                out, _ = process.communicate(timeout=max(1.0, began + READ_S - time.time()))
                said += map(json.loads, out.splitlines())
        except subprocess.TimeoutExpired as e:
            raise LimitExceeded(
                f"{readers} readers did not come to the end of the stream within {READ_S:g} s.",
                limit="time",
                value=READ_S,
                unit="s",
            ) from e
        cpu = cpu_s(pid) - before
    counts = {one["events"] for one in said}
    if len(said) != readers or len(counts) != 1 or 0 in counts:
        raise ProviderError(f"Not all of {readers} readers got all events: {sorted(counts)}.", cause="bench")
    if numbered and not all(one["in_order"] for one in said):
        raise ProviderError(f"Not all of {readers} readers got the events in order.", cause="bench")
    lag = max(quantile(one["lags"], 0.95) for one in said)
    return Followed(counts.pop(), max(one["ended"] for one in said) - began, cpu, lag)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has taken, all threads, user and system (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


@contextmanager
def daemon(root: Path, store: str = "sqlite") -> Iterator[tuple[Settings, int]]:
    """A daemon over boxes in memory below `root`: its settings and its PID. Ended, and waited for, at the end."""
    settings = mock_daemon.settings(root).prepare()
    env = {name: value for name, value in os.environ.items() if not name.startswith("VOIDBOX_")}
    said = root / "daemon.txt"
    command = [sys.executable, "-m", "voidbox_lab.bench.mock_daemon", str(root), store]
    with said.open("wb") as log, leashed(command, stderr=log, env=env) as process:
        deadline = time.monotonic() + START_S
        while not settings.socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                why = said.read_text(encoding="utf-8", errors="replace")[-300:]
                raise ProviderError(f"The daemon over boxes in memory did not start: {why}", cause="bench")
            time.sleep(0.02)
        yield settings, process.pid
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # it is killed then
            process.wait(20)
