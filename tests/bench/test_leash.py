"""Processes on a leash end with the block, with a cancelled measurement, and with a killed benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

import voidbox_lab
from voidbox_lab.bench.leash import in_thread, leashed
from voidbox_lab.machines.owner import process_start_time

NAP = ["sleep", "1000"]


def test_ends_with_the_block() -> None:
    """Whatever happens in it."""
    with suppress(KeyError), leashed(NAP) as process:
        assert process.poll() is None
        raise KeyError
    assert process.returncode == -9


def test_ends_with_a_killed_parent() -> None:
    """The kernel sees to it."""
    program = (
        "import os, time; from voidbox_lab.bench.leash import leashed\n"
        f"with leashed({NAP!r}) as process:\n"
        "    print(process.pid, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(voidbox_lab.__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert process_start_time(pid) is not None
        parent.kill()
    end = time.monotonic() + 10
    while process_start_time(pid) is not None:
        assert time.monotonic() < end, "the process outlives its parent"
        time.sleep(0.01)


@pytest.mark.anyio
async def test_ends_with_a_cancelled_measurement() -> None:
    """Also one that is started after that: the thread may have been busy copying."""
    seen: list[subprocess.Popen[bytes]] = []

    def measure() -> None:
        time.sleep(0.3)
        with leashed(NAP) as process:
            seen.append(process)
            process.wait()

    began = time.monotonic()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_thread, measure)
            await anyio.sleep(0.1)
            scope.cancel()
    assert time.monotonic() - began < 60
    assert [process.returncode for process in seen] == [-9]
