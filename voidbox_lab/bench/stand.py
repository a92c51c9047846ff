"""Where measurements are made: settings apart from the user's daemon, one libvirt, a directory in a tmpfs."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from voidbox_lab import images
from voidbox_lab.box import Boxes
from voidbox_lab.box.apart import apart
from voidbox_lab.machines import Hypervisor, total_memory_mb
from voidbox_lab.settings import Settings


@dataclass(frozen=True)
class Stand:
    """One run's surroundings."""

    settings: Settings
    hypervisor: Hypervisor
    work: Path
    memory_mb: int
    effort: float
    """What the numbers of samples are multiplied by."""

    def samples(self, usual: int) -> int:
        """How many to take of something that is usually sampled `usual` times."""
        return max(1, round(usual * self.effort))

    def clear(self) -> None:
        """Empty `work` for the next measurement: what lies there is memory. Blocking."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(exist_ok=True)

    @asynccontextmanager
    async def boxes(self, *, warm: Literal["auto", "off"] = "auto", spares: int = 0) -> AsyncIterator[Boxes]:
        """Boxes for one measurement."""
        async with Boxes(replace(self.settings, warm=warm, spares=spares), self.hypervisor) as boxes:
            yield boxes

    def machine(self) -> dict[str, Any]:
        """What the figures are from."""
        return {
            "platform": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_mb": total_memory_mb(),
            "python": platform.python_version(),
            "qemu": self.hypervisor.qemu_version,
            "libvirt": self.hypervisor.libvirt_version,
            "load_1m": round(os.getloadavg()[0], 2),
            "guest_memory_mb": self.memory_mb,
        }


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
            yield Stand(settings, hypervisor, work, memory_mb, effort)
        finally:
            await hypervisor.aclose()
