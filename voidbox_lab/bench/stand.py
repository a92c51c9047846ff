"""Where measurements are made: with boxes, apart from the user's daemon, with one libvirt and a directory in a
tmpfs; without any, in a directory on the disk."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from voidbox_lab import images
from voidbox_lab.box import Boxes
from voidbox_lab.box.apart import apart
from voidbox_lab.machines import Hypervisor, total_memory_mb
from voidbox_lab.settings import Settings


@dataclass(frozen=True)
class Desk:
    """Surroundings of what needs no box."""

    work: Path
    """Empty at the beginning of each measurement."""
    effort: float
    """What the numbers of samples are multiplied by."""

    def samples(self, usual: int) -> int:
        """How many to take of something that is usually sampled `usual` times."""
        return max(1, round(usual * self.effort))

    def clear(self) -> None:
        """Empty `work` for the next measurement. Blocking."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(exist_ok=True)

    def machine(self) -> dict[str, Any]:
        """What the figures are from."""
        return {
            "platform": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_mb": total_memory_mb(),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "load_1m": round(os.getloadavg()[0], 2),
        }


@dataclass(frozen=True)
class Stand(Desk):
    """Surroundings of what needs boxes. What lies in `work` is memory."""

    settings: Settings
    hypervisor: Hypervisor
    memory_mb: int

    @asynccontextmanager
    async def boxes(self, *, warm: Literal["auto", "off"] = "auto", spares: int = 0) -> AsyncIterator[Boxes]:
        """Boxes for one measurement."""
        async with Boxes(replace(self.settings, warm=warm, spares=spares), self.hypervisor) as boxes:
            yield boxes

    def machine(self) -> dict[str, Any]:
        """What the figures are from."""
        return {
            **super().machine(),
            "qemu": self.hypervisor.qemu_version,
            "libvirt": self.hypervisor.libvirt_version,
            "guest_memory_mb": self.memory_mb,
        }


@contextmanager
def desk(effort: float) -> Iterator[Desk]:
    """A desk in a temporary directory (``TMPDIR``), which is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="vb-bench-") as root:
        yield Desk(Path(root), effort)


@asynccontextmanager
async def stand(memory_mb: int, effort: float) -> AsyncIterator[Stand]:
    """A stand; images and templates are the user's, runtime directories its own.

    Raises:
        Unavailable: no image, no libvirt, no QEMU.
    """
    user = Settings.from_env().prepare()
    images.resolve(user)
    with apart(user) as settings:
        work = settings.shm / "bench"
        work.mkdir()
        hypervisor = await Hypervisor.open(settings)
        try:
            await hypervisor.sweep()
            yield Stand(work, effort, settings, hypervisor, memory_mb)
        finally:
            await hypervisor.aclose()
