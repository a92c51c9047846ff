"""Who may boot a box now: a fair queue in front of the host's memory and processors.

Not a scheduler: stages come in the order the machine launches them, and the first in the queue is
never overtaken, so a large box is not starved by small ones.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from voidbox_lab.errors import UserError

BOX_OVERHEAD_MB = 96
"""What QEMU and the vsock device take on the host besides the guest's memory."""
SHARE = 0.8
"""The part of the host's memory that boxes may fill."""


@dataclass(frozen=True)
class Capacity:
    """What this host gives to boxes."""

    memory_mb: int
    vcpus: int

    @classmethod
    def of_host(cls) -> Capacity:
        """From /proc/meminfo and the cgroup's limit, whichever is less; two vCPUs for every processor."""
        total = _meminfo_mb("MemTotal:")
        limit = _cgroup_limit_mb()
        usable = min(total, limit) if limit else total
        return cls(memory_mb=int(usable * SHARE), vcpus=2 * max(2, len(os.sched_getaffinity(0))))


class Admission:
    """Lets stages in, first come first served, while the capacity lasts."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.used_mb = 0
        self.used_vcpus = 0
        self.boxes = 0
        self._queue: deque[tuple[int, int, anyio.Event]] = deque()

    def check(self, what: str, memory_mb: int) -> None:
        """`UserError` if a box of that size can never start here."""
        most = self.capacity.memory_mb - BOX_OVERHEAD_MB
        if memory_mb > most:
            raise UserError(
                f"{what} asks for {memory_mb} MiB of memory; this host can give a box at most {most} MiB."
            )

    @asynccontextmanager
    async def admitted(self, memory_mb: int, vcpus: int) -> AsyncIterator[None]:
        """Hold the room for one box; waits, cancellably, until there is room."""
        need_mb, need_vcpus = memory_mb + BOX_OVERHEAD_MB, min(vcpus, self.capacity.vcpus)
        waiting = (need_mb, need_vcpus, anyio.Event())
        self._queue.append(waiting)
        self._serve()
        try:
            await waiting[2].wait()
        except BaseException:
            if waiting in self._queue:
                self._queue.remove(waiting)
                self._serve()
            else:
                self._release(need_mb, need_vcpus)
            raise
        try:
            yield
        finally:
            self._release(need_mb, need_vcpus)

    def _serve(self) -> None:
        while self._queue:
            need_mb, need_vcpus, turn = self._queue[0]
            fits = (
                self.used_mb + need_mb <= self.capacity.memory_mb
                and self.used_vcpus + need_vcpus <= self.capacity.vcpus
            )
            # With nothing else running the first one goes: waiting would never end.
            if not fits and self.boxes:
                return
            self._queue.popleft()
            self.used_mb += need_mb
            self.used_vcpus += need_vcpus
            self.boxes += 1
            turn.set()

    def _release(self, memory_mb: int, vcpus: int) -> None:
        self.used_mb -= memory_mb
        self.used_vcpus -= vcpus
        self.boxes -= 1
        self._serve()


def _meminfo_mb(field: str) -> int:
    """A field of proc(5) meminfo, in MiB."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) // 1024
    raise ValueError(f"/proc/meminfo has no {field}")


def _cgroup_limit_mb() -> int | None:
    """The memory limit of this container (cgroup v2, else v1), or None if there is none to be read."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text) >> 20
    return None
