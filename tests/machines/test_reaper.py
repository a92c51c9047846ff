"""Orphaned QEMUs are reaped by the process that started them, and only they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import guests

PROGRAM = """
import os, subprocess, sys, time
from pathlib import Path
from voidbox_lab.machines import reaper

reaper.expect()
qemu, other = sys.argv[1:]

def orphan(program):
    # As QEMU becomes a daemon: a session of its own, and a parent that ends.
    return int(subprocess.check_output(["sh", "-c", f"setsid {program} 0.3 >&2 & echo $!"]))

def gone_within(pid, seconds):
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()

first, stranger = orphan(qemu), orphan(other)
own = subprocess.Popen([qemu, "x"], stderr=subprocess.DEVNULL)
assert Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid()), "taken in"
assert gone_within(first, 5), "reaped"
assert not gone_within(stranger, 1), "not a QEMU: left as it is"
assert own.wait(5) == 1, "whoever started a QEMU directly gets its exit code"
print("done")
"""


@pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="this kernel has no CONFIG_PROC_CHILDREN"
)
def test_only_orphaned_qemus_are_reaped(tmp_path: Path) -> None:
    """In a process of its own, which then ends."""
    sleep = shutil.which("sleep")
    assert sleep
    for name in ("qemu-test", "something"):
        shutil.copy(sleep, tmp_path / name)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "qemu-test"), str(tmp_path / "something")],
        env=guests.child_environ(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.stdout == "done\n", result.stderr
