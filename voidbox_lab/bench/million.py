"""What a very long run costs to look at: one of a million events beside one of a thousand, by the daemon's API.

What shows a run must not grow with its events; a frame of them must, and takes little more memory than it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from voidbox_lab.bench import million_process, mock, readers
from voidbox_lab.bench.leash import in_thread, leashed
from voidbox_lab.bench.samples import Figure, Series
from voidbox_lab.bench.stand import Desk
from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Pipeline, VoidBoxSpec
from voidbox_lab.spec.events import AgentText, Body, RunChanged, StageChanged, Telemetry
from voidbox_lab.store import Entry, Store, open_store

EVENTS = 1_000_000
FEW = 1000
SAMPLE_EVERY = 10
"""Of so many events one is a sample of telemetry; the others are text."""
BATCH = 5000
TIMES = 5
LOOK_S = 900.0
"""Bound on one look, in seconds."""
STORES = ("sqlite", "directory")
_SAMPLE: dict[str, Any] = {
    "cpu": 0.5, "load1": 0.1, "memory_total_kb": 500_000, "memory_used_kb": 1000, "disk_total_kb": 1,
    "disk_used_kb": 0, "disk_read_bytes": 0, "disk_write_bytes": 0, "net_rx_bytes": 0, "net_tx_bytes": 0,
    "processes": 3,
}  # fmt: skip


async def looks(desk: Desk, events: int = EVENTS, few: int = FEW) -> list[Figure]:
    """Of a million events, times the effort, in each store."""
    figures = []
    for store in STORES:
        figures += await _of_store(desk, store, max(2 * few, round(events * desk.effort)), few)
        await run_sync(desk.clear)
    return figures


async def _of_store(desk: Desk, choice: str, events: int, few: int) -> list[Figure]:
    data = desk.work / "data"
    data.mkdir(mode=0o700)
    store = await open_store(choice, data)
    try:
        await fill(store, "few", few)
        began = time.monotonic()
        await fill(store, "many", events)
        seconds = time.monotonic() - began
    finally:
        await store.aclose()
    note = f"written in {seconds:.0f} s, {BATCH} at a time"
    return await in_thread(_looks, desk.work, choice, events, few, note)


async def fill(store: Store, run: str, events: int) -> None:
    """A run of one stage with exactly so many events, that has succeeded."""
    spec = Pipeline.of(VoidBoxSpec(name="long", command=mock.TRUE)).run_spec()
    now = time.time()
    await store.create_run(run, spec, at=now)
    await store.append(run, [Entry(RunChanged(state="running"), None, now)])
    for first in range(2, events - 1, BATCH):
        numbers = range(first, min(first + BATCH, events - 1))
        await store.append(run, [Entry(_body(n), "long", now + n / 1000) for n in numbers])
    end = now + events / 1000
    ends = [Entry(StageChanged(state="succeeded", output="done"), "long", end)]
    await store.append(run, [*ends, Entry(RunChanged(state="succeeded"), None, end)])


def _body(n: int) -> Body:
    if n % SAMPLE_EVERY == 0:
        return Telemetry(**_SAMPLE, uptime_s=n / 1000)
    return AgentText(text=f"line {n} of what an agent says", block=n)


def _looks(root: Path, choice: str, events: int, few: int, note: str) -> list[Figure]:
    figures = []
    with readers.daemon(root, choice) as (settings, pid):
        for what in ("show", "to_frame", "page"):
            seen, floor = (_look(root, run, n, what, TIMES) for run, n in (("many", events), ("few", few)))
            for said, unit, field in (("time", "s", "seconds"), ("memory", "MB", "peak_mb")):
                figures.append(
                    Figure(
                        "million",
                        _series(f"{what} of {events:,}, {choice}, {said}", unit, seen[field]),
                        _series(f"of {few:,}", unit, floor[field]),
                        wanted_ratio=1.5 if unit == "s" else None,
                        note=note,
                    )
                )
        daemon_mb = million_process.memory_mb("VmHWM", str(pid))
        raw_s = _raw(settings, pid)
        for what, rows in (("events_frame", events), ("telemetry_frame", events // SAMPLE_EVERY)):
            seen = _look(root, "many", events, what, 1)
            if abs(seen["rows"] - rows) > 1:
                raise ProviderError(f"{what} has {seen['rows']} rows and should have {rows}.", cause="bench")
            name = f"{what} of {events:,}, {choice}"
            frame = _series("the frame itself", "MB", seen["held_mb"])
            figures += [
                Figure(
                    "million",
                    _series(f"{name}, time", "s", seen["seconds"]),
                    _series("its bytes read", "s", raw_s),
                ),
                Figure("million", _series(f"{name}, memory", "MB", seen["peak_mb"]), frame),
            ]
        grown = million_process.memory_mb("VmHWM", str(pid))
        figures.append(
            Figure(
                "million",
                _series(f"daemon after all was read thrice, {choice}, memory", "MB", grown),
                _series("before that", "MB", daemon_mb),
            )
        )
    return figures


def _series(name: str, unit: Any, values: Any) -> Series:
    return Series(name, unit, tuple(values) if isinstance(values, list) else (values,))


def _raw(settings: Settings, pid: int) -> float:
    return readers.read(settings.socket, pid, 1, lambda: "/v1/runs/many/events", numbered=True).seconds


def _look(root: Path, run: str, events: int, what: str, times: int) -> dict[str, Any]:
    """See `million_process`."""
    command = [sys.executable, "-m", "voidbox_lab.bench.million_process", str(root), run, str(events), what]
    with leashed([*command, str(times)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            out, err = process.communicate(timeout=LOOK_S)
        except subprocess.TimeoutExpired as e:
            raise LimitExceeded(
                f"{what} of {events} events took longer than {LOOK_S:g} s.", limit="time", value=LOOK_S, unit="s"
            ) from e
    if process.returncode:
        raise ProviderError(f"{what} failed: {err.decode(errors='replace')[-300:]}", cause="bench")
    said: dict[str, Any] = json.loads(out)
    return said
