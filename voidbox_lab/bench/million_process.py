"""One look at a run, in a process of its own, so that its peak memory is that look's. Prints a line of JSON.

``python -m voidbox_lab.bench.million_process ROOT RUN EVENTS WHAT TIMES``. Memory is what the process held at most
beyond what it held before, in MB (VmHWM of proc(5), which clear_refs resets), and what it held when it had let go
of everything but the result.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voidbox_lab.api import Run
from voidbox_lab.bench.mock_daemon import settings
from voidbox_lab.client import Client
from voidbox_lab.settings import Settings

TAIL = 100
"""Events of the page at the end."""


def show(there: Settings, run: str, _events: int) -> Any:
    """What `voidbox show` asks for."""
    with Client(there, start=False) as client:
        return client.run(run)


def page(there: Settings, run: str, events: int) -> Any:
    """The last events, by number."""
    with Client(there, start=False) as client:
        found = list(client.events(run, after=events - TAIL))
    assert len(found) == TAIL, f"{len(found)} events at the end"
    return found


def _of_run(method: str) -> Callable[[Settings, str, int], Any]:
    def look(there: Settings, run: str, _events: int) -> Any:
        return getattr(Run.load(run, settings=there), method)()

    return look


LOOKS: dict[str, Callable[[Settings, str, int], Any]] = {
    "show": show,
    "page": page,
    "to_frame": _of_run("to_frame"),
    "events_frame": _of_run("events_frame"),
    "telemetry_frame": _of_run("telemetry_frame"),
}


def memory_mb(name: str, pid: str = "self") -> float:
    """``VmRSS`` or ``VmHWM`` of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main(root: str, run: str, events: str, what: str, times: str) -> None:
    """See the module."""
    there, seconds = settings(Path(root)), []
    result: Any = None
    LOOKS["show"](there, run, int(events))  # imports, and a connection's first use
    if what.endswith("_frame"):
        importlib.import_module("pandas")  # before anything is timed
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = memory_mb("VmRSS")
    for _ in range(int(times)):
        result = None
        began = time.monotonic()
        result = LOOKS[what](there, run, int(events))
        seconds.append(time.monotonic() - began)
    peak = memory_mb("VmHWM") - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    held = memory_mb("VmRSS") - before
    rows = len(result) if hasattr(result, "__len__") else 1
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_mb": peak, "held_mb": held, "rows": rows}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
