"""Who may boot a box now: a fair queue in front of the host's memory and processors, bounded and not silent.

Fair between runs, by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a box's start tag is the
greater of virtual time and the finish tag of its run's last box; it finishes later by its share of the host. The
least start tag is first and is never passed by one that fits better, so a run of a thousand stages does not keep
out one of a single stage, and a large box is not starved by small ones. Virtual time is the start tag of the last
box that was let in.
"""

from __future__ import annotations

import bisect
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import anyio

from voidbox_lab.errors import LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.machines import total_memory_mb

BOX_OVERHEAD_MB = 96
"""What QEMU and the vsock device take on the host besides the guest's memory."""
SHARE = 0.8
"""The part of the host's memory that boxes may fill."""
WAIT_S = 4 * 3600.0
"""Longest wait for room, in seconds: many long stages in front are no fault, so it is long, but it ends."""
TELL_S = 30.0
"""Least time between two words about one wait."""
POLL_S = 1.0
"""How often the first in the queue looks at the host's memory."""
FRESH_S = 20.0
"""How long a box is taken to grow into its memory: a guest that boots has touched little of it."""
SETTLE_S = 3.0
"""How long the memory of a box that ended may take to come back."""

Reason = Literal["turn", "memory", "vcpus", "host-memory"]
"""What is lacking: only one's turn, the share of memory or vCPUs for boxes, or the host's memory as it is now."""


@dataclass(frozen=True)
class Capacity:
    """What this host gives to boxes."""

    memory_mb: int
    vcpus: int

    @classmethod
    def of_host(cls) -> Capacity:
        """From /proc/meminfo and the cgroup's limit, whichever is less; two vCPUs for every processor."""
        total = total_memory_mb()
        limit = _cgroup_limit_mb()
        usable = min(total, limit) if limit else total
        return cls(memory_mb=int(usable * SHARE), vcpus=2 * max(2, len(os.sched_getaffinity(0))))


@dataclass(frozen=True)
class Waiting:
    """Why a box waits for room, and how far it has come."""

    reason: Reason
    needs: int
    """MiB with the host's share of the box, or vCPUs where `reason` is ``vcpus``."""
    free: int
    """In the same unit."""
    ahead: int
    """Boxes in front of it."""

    def __str__(self) -> str:
        unit = "vCPUs" if self.reason == "vcpus" else "MiB"
        free = f"{self.free} {unit} free" + (" on the host" if self.reason == "host-memory" else "")
        return f"needs {self.needs} {unit}, {free}, {self.ahead} in front"


Tell = Callable[[Waiting], Awaitable[None]]
"""Told of a wait when it begins, and of its progress at most every `TELL_S` seconds."""


async def _nobody(_waiting: Waiting) -> None:
    return


@dataclass(eq=False)
class _Ticket:
    """One box's place: in the queue, then inside, or refused."""

    what: str
    need_mb: int
    need_vcpus: int
    run: str
    """Who it is fair between."""
    tag: tuple[float, int]
    """Its start tag, and its place among equals."""
    wake: anyio.Event = field(default_factory=anyio.Event)
    """Set when the ticket is let in, is refused or has become the first."""
    since: float | None = None
    """When it was let in, by the monotonic clock."""
    refusal: VoidboxError | None = None

    @property
    def settled(self) -> bool:
        return self.since is not None or self.refusal is not None


class Admission:
    """Lets boxes in, by turns between runs, while there is room: of the capacity, and of the host's memory.

    Args:
        free_mb: MiB a new process may take now, None where that is not known; read each time the first in the
            queue is looked at. Other programs' memory is seen by it alone.
        wait_s: bound on waiting for room, in seconds.
    """

    def __init__(
        self, capacity: Capacity, *, free_mb: Callable[[], int | None] = lambda: None, wait_s: float = WAIT_S
    ) -> None:
        self.capacity = capacity
        self._free_mb, self._wait_s = free_mb, wait_s
        self._queue: list[_Ticket] = []
        """By tag; those of held runs are in it and are passed over."""
        self._inside: set[_Ticket] = set()
        self._held: set[str] = set()
        self._virtual = 0.0
        self._finish: dict[str, float] = {}
        """Finish tag of the last box of each run that has boxes here."""
        self._here: Counter[str] = Counter()
        """Boxes of each run, in the queue or inside."""
        self._count = itertools.count()
        self._first: _Ticket | None = None
        self._left = -math.inf

    @property
    def used_mb(self) -> int:
        """MiB promised to the boxes that are in."""
        return sum(t.need_mb for t in self._inside)

    @property
    def used_vcpus(self) -> int:
        """vCPUs promised to the boxes that are in."""
        return sum(t.need_vcpus for t in self._inside)

    @property
    def boxes(self) -> int:
        """Boxes that are in."""
        return len(self._inside)

    def check(self, what: str, memory_mb: int) -> None:
        """`UserError` if a box of that size can never start here."""
        most = self.capacity.memory_mb - BOX_OVERHEAD_MB
        if memory_mb > most:
            raise UserError(
                f"{what} asks for {memory_mb} MiB of memory; this host can give a box at most {most} MiB."
            )

    @asynccontextmanager
    async def admitted(
        self, memory_mb: int, vcpus: int, *, what: str = "A box", run: str = "", tell: Tell = _nobody
    ) -> AsyncIterator[None]:
        """Hold the room for one box; waits, cancellably, until there is room.

        Args:
            what: who asks, as the subject of an error's sentence.
            run: whose turn it is; boxes of no run share one.

        Raises:
            LimitExceeded: there was no room within the bound (limit ``time``, cause ``no-room``).
            ProviderError: the host's memory is taken by others, and no box of ours would free some
                (cause ``host-memory``).
        """
        ticket = self._ticket(what, memory_mb + BOX_OVERHEAD_MB, min(vcpus, self.capacity.vcpus), run)
        self._here[run] += 1
        bisect.insort(self._queue, ticket, key=lambda t: t.tag)
        try:
            self._serve()
            with anyio.move_on_after(self._wait_s) as bound:
                await self._turn(ticket, tell, bound)
            if ticket.refusal is not None:
                raise ticket.refusal
            if not ticket.settled:
                raise self._no_room(ticket)
            yield
        finally:
            self._leave(ticket)

    def hold(self, run: str, held: bool) -> None:
        """Keep the boxes of `run` that wait waiting, or let them go on. Boxes that are in stay in."""
        if held:
            self._held.add(run)
        else:
            self._held.discard(run)
        self._first = None  # whoever is first now is to be woken, to look at the host's memory more often
        self._serve()

    def _ticket(self, what: str, need_mb: int, need_vcpus: int, run: str) -> _Ticket:
        start = max(self._virtual, self._finish.get(run, 0.0))
        share = max(need_mb / self.capacity.memory_mb, need_vcpus / self.capacity.vcpus)
        self._finish[run] = start + share
        return _Ticket(what, need_mb, need_vcpus, run, (start, next(self._count)))

    @property
    def _next(self) -> _Ticket | None:
        return next((t for t in self._queue if t.run not in self._held), None)

    async def _turn(self, ticket: _Ticket, tell: Tell, bound: anyio.CancelScope) -> None:
        told, told_at = None, -math.inf
        while not ticket.settled:
            now, seen = time.monotonic(), self._seen(ticket)
            # What is free changes all the time and would be news all the time.
            if ticket.run not in self._held and (seen.reason, seen.ahead) != told and now - told_at >= TELL_S:
                told, told_at = (seen.reason, seen.ahead), now
                await tell(seen)
            first = self._next is ticket
            # Nobody tells of memory that another program gave back.
            with anyio.move_on_after(POLL_S if first else TELL_S):
                await ticket.wake.wait()
                ticket.wake = anyio.Event()
            if ticket.run in self._held:
                bound.deadline = anyio.current_time() + self._wait_s  # the time of a pause does not count
            if not ticket.settled:
                self._serve()

    def _seen(self, ticket: _Ticket) -> Waiting:
        ahead = bisect.bisect_left(self._queue, ticket.tag, key=lambda t: t.tag)
        if self._held:
            ahead -= sum(1 for t in self._queue[:ahead] if t.run in self._held)
        found = self._obstacle(ticket)
        if found is None:
            free = self.capacity.memory_mb - self.used_mb
            return Waiting("turn", ticket.need_mb, free, ahead)
        return replace(found, ahead=ahead)

    def _obstacle(self, ticket: _Ticket) -> Waiting | None:
        """What keeps `ticket` out if it is the first, or None."""
        # With nothing else running the first one goes whatever its share: waiting would never end.
        if self._inside:
            free = self.capacity.memory_mb - self.used_mb
            if ticket.need_mb > free:
                return Waiting("memory", ticket.need_mb, free, 0)
            free = self.capacity.vcpus - self.used_vcpus
            if ticket.need_vcpus > free:
                return Waiting("vcpus", ticket.need_vcpus, free, 0)
        on_host = self._free_mb()
        if on_host is not None and ticket.need_mb > (left := on_host - self._fresh_mb()):
            return Waiting("host-memory", ticket.need_mb, max(0, left), 0)
        return None

    def _fresh_mb(self) -> int:
        """What boxes were promised and have not taken yet, so that the host still counts it as free."""
        now = time.monotonic()
        return sum(t.need_mb for t in self._inside if t.since is not None and now - t.since < FRESH_S)

    def _serve(self) -> None:
        while (first := self._next) is not None:
            obstacle = self._obstacle(first)
            if obstacle is None:
                first.since = time.monotonic()
                self._virtual = max(self._virtual, first.tag[0])  # a held run's tag may be of long ago
                self._inside.add(first)
            elif not self._inside and time.monotonic() - self._left >= SETTLE_S:
                first.refusal = ProviderError(
                    f"{first.what} needs {obstacle.needs} MiB of host memory and {obstacle.free} MiB are free, "
                    "and no box runs that would give some back; end other programs, or ask for a smaller box.",
                    cause="host-memory",
                )
            else:
                if first is not self._first:
                    self._first = first
                    first.wake.set()
                return
            self._queue.remove(first)
            first.wake.set()

    def _leave(self, ticket: _Ticket) -> None:
        if ticket in self._inside:
            self._inside.remove(ticket)
            self._left = time.monotonic()
        elif ticket in self._queue:
            self._queue.remove(ticket)
        self._here[ticket.run] -= 1
        if not self._here[ticket.run]:
            del self._here[ticket.run]
            # Nobody of that run is here: it comes back without credit or debt, as virtual time is past its tag or
            # soon will be.
            self._finish.pop(ticket.run, None)
        self._serve()

    def _no_room(self, ticket: _Ticket) -> LimitExceeded:
        return LimitExceeded(
            f"{ticket.what} found no room within {self._wait_s:g} s ({self._seen(ticket)}); end other boxes or "
            "programs, or ask for a smaller box.",
            limit="time",
            value=self._wait_s,
            unit="s",
            cause="no-room",
        )


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
