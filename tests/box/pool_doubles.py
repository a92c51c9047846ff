"""A host and births that are none, for tests of the pool of spares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio

from voidbox_lab.box import pool
from voidbox_lab.box.birth import Birth
from voidbox_lab.box.pool import Pool
from voidbox_lab.errors import BoxLost, ProviderError
from voidbox_lab.machines import Recipe
from voidbox_lab.machines.hostmemory import QEMU_OVERHEAD_MB

SIZE_MB = 128
COST_MB = SIZE_MB + QEMU_OVERHEAD_MB
TOTAL_MB = 10_000
SHARE_MB = int(TOTAL_MB * pool.MEMORY_SHARE)


class FakeBirth:
    """A clone that is nothing but up or down."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.alive, self.answers, self.undone = True, True, 0
        self.connection = self
        self.asked = anyio.Event()
        self.hold = anyio.Event()
        self.hold.set()

    async def request(self, _op: str, *, within_s: float) -> dict[str, Any]:
        """The ping; `hold` makes it take time."""
        assert 0 < within_s < 60
        self.asked.set()
        await self.hold.wait()
        if not self.answers:
            raise BoxLost("silent", cause="guest-agent-died")
        return {}

    async def undo(self) -> None:
        """As the real one: idempotent, not to be cancelled."""
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0)
            self.undone += 1
            if self.undone == 1:
                self.alive = False
                self.host.up.remove(self)


class Host:
    """A host with so much memory and a clock; makes births and counts them."""

    def __init__(self, room_for: int = 1000) -> None:
        self.room_mb = SHARE_MB + room_for * COST_MB
        self.now = 1000.0
        self.up: list[FakeBirth] = []
        self.made: list[FakeBirth] = []
        self.most = self.tries = 0
        self.failing = False
        self.before_make: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint

    def memory(self) -> tuple[int, int]:
        """Free and in all, in MiB."""
        return self.room_mb - COST_MB * len(self.up), TOTAL_MB

    async def make(self, _recipe: Recipe) -> Birth:
        """One birth, or none."""
        self.tries += 1
        await self.before_make()
        if self.failing:
            raise ProviderError("no luck")
        birth = FakeBirth(self)
        self.up.append(birth)
        self.made.append(birth)
        self.most = max(self.most, len(self.up))
        return cast("Birth", birth)

    def pool(self, limit: int) -> Pool:
        """A pool on this host."""
        return Pool(self.make, limit, memory=self.memory, clock=lambda: self.now)
