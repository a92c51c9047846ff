"""The event loop: descriptors, timers, and an end-of-round hook. Single-threaded, level-triggered.

Not for blocking work: whoever blocks in a callback blocks the box. All descriptors given to it are
non-blocking, so a stale or spurious wake-up is harmless.
"""

from __future__ import annotations

from _heapq import heapify, heappop, heappush
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = EPOLLIN
WRITE = EPOLLOUT
BROKEN = EPOLLERR | EPOLLHUP
MIN_TIMERS = 256
"""Timers kept, cancelled ones among them, before these are looked for."""


class Timer:
    """A callback that is due once; `cancel` is idempotent and allowed after it fired."""

    __slots__ = ("callback", "serial", "when")

    def __init__(self, when: float, serial: int, callback: Callable[[], None]) -> None:
        self.when, self.serial = when, serial
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.serial) < (other.when, other.serial)

    def cancel(self) -> None:
        """Forget the callback; the heap drops the husk when it is due, or has too many."""
        self.callback = None


class Loop:
    """One epoll set, one heap of timers."""

    def __init__(self) -> None:
        self._epoll = epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._serial = 0
        self._running = False
        self._fresh: set[int] = set()
        """Watched since the round began, some by numbers that others had: events of this round are not theirs."""
        self._most = MIN_TIMERS
        self.after_round: Callable[[], None] | None = None
        """Called after every round of events: the place to send what the round produced in one go."""

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready_events)` whenever `fd` is ready; watching again replaces what was."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
            self._fresh.add(fd)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on a watched `fd`. Errors and hang-ups are always reported: `forget` a
        descriptor that may hang up while nobody wants to hear of it, or the loop spins."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; nothing happens if it is not watched. Call before closing it."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, in `seconds`."""
        self._serial += 1
        timer = Timer(monotonic() + seconds, self._serial, callback)
        heappush(self._timers, timer)
        if len(self._timers) > self._most:
            # Whoever has connections made and dropped leaves husks by the thousand.
            self._timers[:] = [timer for timer in self._timers if timer.callback is not None]
            heapify(self._timers)
            self._most = max(MIN_TIMERS, 2 * len(self._timers))
        return timer

    def stop(self) -> None:
        """Leave `run` after this round."""
        self._running = False

    def run(self) -> None:
        """Serve until `stop`. An exception of a callback ends the loop: the owner decides."""
        self._running = True
        while self._running:
            self._round()
            if self.after_round is not None:
                self.after_round()

    def _round(self) -> None:
        timers = self._timers
        while timers and timers[0].callback is None:
            heappop(timers)
        # Never less than 0, which epoll takes as "for ever".
        wait = max(0.0, timers[0].when - monotonic()) if timers else None
        ready_fds = self._epoll.poll(wait, 64)
        self._fresh.clear()
        for fd, ready in ready_fds:
            callback = self._callbacks.get(fd)
            if callback is not None and fd not in self._fresh:
                callback(ready)
        now = monotonic()
        while timers and timers[0].when <= now:
            due = heappop(timers).callback
            if due is not None:
                due()
