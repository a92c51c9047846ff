"""Clones that wait for the next stage, up to the last step that is the same for everybody.

How many: as many as were asked for lately, at most `limit`, while the host has memory to spare. The keeper makes
them one at a time when nothing has started for a moment, looks after them, and gives them up when nobody asked for
a while or memory is short.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable

import anyio

from voidbox_lab.box.birth import Birth
from voidbox_lab.errors import VoidboxError
from voidbox_lab.machines import Recipe
from voidbox_lab.machines.hostmemory import QEMU_OVERHEAD_MB, available_memory_mb, total_memory_mb
from voidbox_lab.wire import protocol as p

log = logging.getLogger(__name__)

CALM_S = 1.0
"""Seconds without a start before a spare is made: a stage's first steps come before the next stage's."""
RECENT_S = 60.0
"""What was asked for in so many seconds is what may be asked for at once again."""
IDLE_S = 300.0
"""Seconds without a request after which spares are given up."""
HEALTH_S = 30.0
"""Seconds within which each spare is looked at twice."""
PING_S = 5.0
MEMORY_SHARE = 0.25
"""The part of the host's memory that spares leave free."""
FAILED_S = 60.0
"""Seconds without another try after a spare could not be made."""


class Pool:
    """Spare clones by recipe. `run` must be running somewhere for any to be made."""

    def __init__(
        self,
        make: Callable[[Recipe], Awaitable[Birth]],
        limit: int,
        *,
        memory: Callable[[], tuple[int, int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory`: the host's, free and in all, in MiB; for tests, as is `clock`."""
        self._make, self.limit = make, limit
        self._memory, self._clock = memory or host_memory_mb, clock
        self._spares: dict[Recipe, deque[tuple[Birth, float]]] = defaultdict(deque)
        self._asked: dict[Recipe, deque[float]] = defaultdict(deque)
        self._dead: list[Birth] = []
        self._wake = anyio.Event()
        self._retry_at = 0.0
        self._closed = False
        self._leaving = anyio.Event()
        self._left = anyio.Event()
        self._left.set()

    def __len__(self) -> int:
        """Spares that are ready."""
        return sum(len(spares) for spares in self._spares.values())

    @property
    def memory_mb(self) -> int:
        """Host memory that goes with the spares, in MiB: what they really hold, QEMU's own part estimated."""
        births = [birth for spares in self._spares.values() for birth, _ in spares]
        return sum(birth.held_bytes >> 20 for birth in births) + len(births) * QEMU_OVERHEAD_MB

    def asked(self, recipe: Recipe) -> None:
        """A box of `recipe` is wanted: so may be the next."""
        times = self._asked[recipe]
        times.append(self._clock())
        while len(times) > max(1, self.limit):
            times.popleft()
        self._wake.set()

    def claim(self, recipe: Recipe) -> Birth | None:
        """A live spare, the caller's from now on; None when there is none."""
        spares = self._spares.get(recipe)
        while spares:
            birth, _ = spares.popleft()
            if birth.alive:
                return birth
            # Its remains are taken down by the keeper's next round.
            self._dead.append(birth)
        return None

    def wanted(self, recipe: Recipe) -> int:
        """How many spares of `recipe` there should be, memory aside."""
        times = self._asked.get(recipe)
        now = self._clock()
        if not self.limit or not times or now - times[-1] > IDLE_S:
            return 0
        return min(self.limit, max(1, sum(now - t <= RECENT_S for t in times)))

    async def run(self) -> None:
        """Keep the pool until `aclose`. Never raises."""
        self._left = anyio.Event()
        try:
            while not self._closed:
                with anyio.move_on_after(HEALTH_S / 2 if len(self) else HEALTH_S):
                    await self._wake.wait()
                self._wake = anyio.Event()
                try:
                    await self._round()
                except Exception:
                    # Its task group is that of all boxes.
                    log.exception("the pool of spares could not be looked after")
                    self._retry_at = self._clock() + FAILED_S
        finally:
            self._left.set()

    async def drain(self, need_mb: int = 1 << 40) -> int:
        """Give spares up, the oldest first, until the host has `need_mb` MiB free; how many went."""
        gone = 0
        while len(self) and self._memory()[0] < need_mb:
            await self.give_up_one()
            gone += 1
        return gone

    async def give_up_one(self) -> None:
        """Take the oldest spare down, if there is one."""
        waiting = [spares for spares in self._spares.values() if spares]
        if waiting:
            await min(waiting, key=lambda spares: spares[0][1]).popleft()[0].undo()

    async def aclose(self) -> None:
        """Close every spare and make no more. Idempotent."""
        self._closed = True
        self._leaving.set()
        self._wake.set()
        with anyio.CancelScope(shield=True):
            await self._left.wait()
            await self._take_down(self._dead + [birth for spares in self._spares.values() for birth, _ in spares])
            self._spares.clear()

    # the keeper

    async def _round(self) -> None:
        await self._look_after()
        while not self._closed and (recipe := self._lacking()) is not None:
            if not await self._calm():
                return
            if recipe is not self._lacking():
                continue
            await self._add(recipe)

    def _lacking(self) -> Recipe | None:
        """The recipe whose spare is made next; None while all is well or nothing can be done."""
        if self._clock() < self._retry_at or len(self) >= self.limit:
            return None
        free, total = self._memory()
        for recipe in sorted(self._asked, key=lambda r: self._asked[r][-1], reverse=True):
            room = free - recipe.memory_mb - QEMU_OVERHEAD_MB >= total * MEMORY_SHARE
            if room and len(self._spares[recipe]) < self.wanted(recipe):
                return recipe
        return None

    async def _calm(self) -> bool:
        """Wait until nothing was asked for during `CALM_S`; False when the pool closes first."""
        while not self._closed:
            since = min((self._clock() - times[-1] for times in self._asked.values()), default=CALM_S)
            if since >= CALM_S:
                return True
            with anyio.move_on_after(CALM_S - since):
                await self._leaving.wait()
        return False

    async def _add(self, recipe: Recipe) -> None:
        birth: list[Birth] = []

        async def make(scope: anyio.CancelScope) -> None:
            birth.append(await self._make(recipe))
            scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(make, tasks.cancel_scope)
                await self._leaving.wait()
                tasks.cancel_scope.cancel()
        except* Exception as group:
            # A spare is a kindness: the box that is really wanted will tell what is wrong.
            log.warning("no spare box could be made: %s", group.exceptions[0])
            self._retry_at = self._clock() + FAILED_S
        finally:
            for new in birth:  # also when cancelled just then: `aclose` takes it down
                self._spares[recipe].append((new, self._clock()))

    async def _look_after(self) -> None:
        """Close what is dead, silent, no longer wanted, or too much for the host's memory."""
        # Spares are claimed and asked for while they are looked at, and stay in their place meanwhile.
        for recipe, spares in tuple(self._spares.items()):
            for spare in tuple(spares):
                surplus = len(spares) > self.wanted(recipe)
                if (surplus or not await self._answers(spare[0])) and spare in spares:
                    spares.remove(spare)
                    self._dead.append(spare[0])
        dead, self._dead = self._dead, []
        await self._take_down(dead)
        for recipe in [r for r in self._asked if not self._spares[r] and not self.wanted(r)]:
            del self._asked[recipe], self._spares[recipe]
        free, total = self._memory()
        if free < total * MEMORY_SHARE / 2:
            await self.drain(int(total * MEMORY_SHARE))

    async def _answers(self, birth: Birth) -> bool:
        if not birth.alive:
            return False
        try:
            await birth.connection.request(p.OP_PING, within_s=PING_S)
        except VoidboxError:
            return False
        return True

    async def _take_down(self, births: list[Birth]) -> None:
        async with anyio.create_task_group() as tasks:
            for birth in births:
                tasks.start_soon(birth.undo)


def host_memory_mb() -> tuple[int, int]:
    """What a new process may take of this host's memory, and all of it, in MiB."""
    total, free = total_memory_mb(), available_memory_mb()
    return (total if free is None else free), total
