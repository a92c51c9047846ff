"""A thin epoll loop: descriptors, their handlers, and safe closing. Not for timers or policy.

epoll itself rather than `selectors`: the switch needs EPOLLHUP told apart from EPOLLIN (a peer that
closed from one that shut down its sending half) and edge triggering (a full or starved connection
costs nothing, not even when its peer has hung up).
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

IN, OUT, HUP, ERR, RDHUP, ET = (
    select.EPOLLIN,
    select.EPOLLOUT,
    select.EPOLLHUP,
    select.EPOLLERR,
    select.EPOLLRDHUP,
    select.EPOLLET,
)

EDGES = IN | RDHUP | ET
"""What a connection's socket is watched for; OUT only while bytes are held back for it."""


class HasFileno(Protocol):
    """What can be watched."""

    def fileno(self) -> int:
        """Its descriptor."""


class Poller:
    """Calls ``handler(events)`` for each descriptor that is ready."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._closing: list[socket.socket | int] = []

    def add(self, source: HasFileno | int, events: int, handler: Callable[[int], None]) -> None:
        """Watch `source`.

        Raises:
            OSError: the kernel's limit on watches is reached.
        """
        fd = source if isinstance(source, int) else source.fileno()
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def modify(self, source: HasFileno | int, events: int) -> None:
        """Watch `source` for other events; an edge that is up already counts as new."""
        self._epoll.modify(source if isinstance(source, int) else source.fileno(), events)

    def remove(self, source: HasFileno | int) -> None:
        """Watch `source` no longer; it stays open."""
        fd = source if isinstance(source, int) else source.fileno()
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def discard(self, source: socket.socket | int) -> None:
        """Watch `source` no longer and close it, after the events at hand are handled.

        Closed at once, its number could come back for another socket within the same batch of
        events, which would then be given its predecessor's.
        """
        self.remove(source)
        self._closing.append(source)

    def wait(self, timeout_s: float | None) -> int:
        """Handle one batch of events, and how many they were; None waits for ever."""
        batch = self._epoll.poll(timeout_s, 128)
        for fd, events in batch:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)
        self.sweep()
        return len(batch)

    def sweep(self) -> None:
        """Close what was discarded."""
        for source in self._closing:
            if isinstance(source, int):
                os.close(source)
            else:
                source.close()
        self._closing.clear()

    def close(self) -> None:
        """Close the poller itself and what was discarded."""
        self.sweep()
        self._handlers.clear()
        self._epoll.close()
