"""The host's memory: all of it, and what a new process may take. Blocking, quick."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

QEMU_OVERHEAD_MB = 64
"""Host memory a QEMU takes besides the guest's own, at least."""


def total_memory_mb() -> int:
    """The host's memory, in MiB (proc(5), meminfo)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    raise ValueError("/proc/meminfo has no MemTotal:")


def available_memory_mb(root: Path = Path("/")) -> int | None:
    """Memory a new process may take, in MiB: the host's, or less where a cgroup (v2) limits this process.

    `root` is for tests. None when ``/proc/meminfo`` cannot be read.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) // 1024
    except (OSError, StopIteration, ValueError):
        return None
    with suppress(OSError, ValueError, StopIteration):
        cgroups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        path = next(line.removeprefix("0::/") for line in cgroups if line.startswith("0::/"))
        group = root / "sys/fs/cgroup" / path
        limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max" means none: ValueError
        used = int((group / "memory.current").read_text(encoding="ascii"))
        free = min(free, max(0, limit - used) >> 20)
    return free
