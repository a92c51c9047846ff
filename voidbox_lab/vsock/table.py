"""All connections of one device: who is there, who has something to say, and how each one ends.

Not for moving bytes (`uplink`, `downlink`) nor for opening (`doors`). Every bound on a hostile guest or
a stuck host process that is not in the packets themselves is kept here: `MAX_CONNECTIONS`, the
windows, a deadline on every state that waits.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING

from voidbox_lab.vsock import packets
from voidbox_lab.vsock.connection import CLOSING, ESTABLISHED, REQUESTED, Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from voidbox_lab.vsock.poller import Poller

MAX_CONNECTIONS = 1024
MAX_DIALLED = 64
"""Connections that the guest opened. Each holds a descriptor in a host process that serves other boxes too."""
MEMORY_BUDGET = 32 << 20
"""Bytes shared out as windows; the first 128 connections get `MAX_WINDOW`, the last ones `MIN_WINDOW`."""
MAX_WINDOW, MIN_WINDOW = 256 << 10, 64 << 10

LINGER_S = 60.0
"""Seconds without progress until a connection whose host end closed is reset. Linux guests wait 8 s."""
DRAIN_S = 600.0
"""Seconds without progress until the last bytes of a guest's closed connection are given up."""


class Table:
    """The connections, by host and guest port, and the two lists of what is to be told the guest."""

    def __init__(self, poller: Poller, cid: int) -> None:
        self.cid = cid
        self.connections: dict[tuple[int, int], Connection] = {}
        self.draining: set[Connection] = set()
        """Forgotten by the guest, with bytes the host has not read yet."""
        self.waiting: set[Connection] = set()
        """Dialled by the guest, with the host's backlog full."""
        self.dialled: set[Connection] = set()
        """Opened by the guest."""
        self.timed: set[Connection] = set()
        self.ready: deque[Connection] = deque()
        """Have something for the guest, each once."""
        self.resets: deque[bytes] = deque()
        """Go before everything else: their ports may be in use again by then."""
        self.pending = 0
        """Host clients that have not said what they want yet (kept by `doors`)."""
        self.opened = 0
        self.freed: Callable[[], None] = lambda: None
        """Called when a place has become free."""
        self._poller = poller

    def count(self) -> int:
        """Places taken of `MAX_CONNECTIONS`."""
        return len(self.connections) + len(self.draining) + self.pending

    def window(self) -> int:
        """Bytes a new connection may have held here: less when it is crowded."""
        return max(MIN_WINDOW, min(MAX_WINDOW, MEMORY_BUDGET // (self.count() + 1)))

    def known(self, c: Connection) -> bool:
        """Not one whose ports the guest gave to another since."""
        return self.connections.get(c.key) is c

    def queue(self, c: Connection) -> None:
        """`c` has something for the guest."""
        if not c.queued and self.known(c):
            c.queued = True
            self.ready.append(c)

    def refuse(self, host_port: int, guest_port: int, kind: int = packets.TYPE_STREAM) -> None:
        """Have an RST sent."""
        self.resets.append(packets.reset(self.cid, host_port, guest_port, kind))

    def clear(self) -> None:
        """Forget everything, without a word to the guest."""
        for c in [*self.connections.values(), *self.draining]:
            self.drop(c, reset=False)
        self.resets.clear()

    def expire(self, now: float) -> None:
        """End what has waited too long."""
        for c in [c for c in self.timed if c.deadline is not None and c.deadline <= now]:
            self.drop(c, reset=c not in self.draining)

    def deadline(self, c: Connection, seconds: float | None) -> None:
        """Set, move or (None) lift the time by which `c` must have got on."""
        if seconds is None:
            c.deadline = None
            self.timed.discard(c)
        else:
            c.deadline = time.monotonic() + seconds
            self.timed.add(c)

    # -- endings -------------------------------------------------------------------------------

    def host_gone(self, c: Connection) -> None:
        """The host's peer closed; what it sent before is still to be delivered."""
        if c.state == REQUESTED:
            self.drop(c, reset=True)
        elif c.local_shutdown & packets.SHUT_SEND or c.peer_shutdown & packets.SHUT_RECEIVE:
            self.close_host(c)
        elif c.state == ESTABLISHED:
            self.deadline(c, LINGER_S)

    def host_eof(self, c: Connection) -> None:
        """The host's peer sends no more."""
        c.readable = False
        if c.hung_up:
            self.close_host(c)
        else:
            self.shut_guest(c, packets.SHUT_SEND)

    def host_deaf(self, c: Connection) -> None:
        """The host's peer reads no more."""
        self.shut_guest(c, packets.SHUT_RECEIVE)

    def shut_guest(self, c: Connection, flags: int) -> None:
        """Tell the guest that the host sends, or receives, no more."""
        if c.local_shutdown | flags != c.local_shutdown:
            c.local_shutdown |= flags
            if self.known(c):
                c.ask(packets.SHUTDOWN)
                self.queue(c)

    def close_host(self, c: Connection) -> None:
        """Let go of the host's socket and wait, not for ever, for the guest's RST."""
        if c.state == CLOSING:
            return
        if not self.known(c):
            self.drop(c, reset=False)
            return
        if c.backlog:
            c.release(len(c.backlog))
            c.backlog.clear()
        self.shut_guest(c, packets.SHUT_BOTH)
        c.state = CLOSING
        self._poller.discard(c.sock)
        self.deadline(c, LINGER_S)
        self.freed()

    def drain(self, c: Connection) -> None:
        """The guest forgot `c`, the host has not read all of it yet: deliver, then close."""
        del self.connections[c.key]
        self.unqueue(c)
        self.draining.add(c)
        self.deadline(c, DRAIN_S)

    def drop(self, c: Connection, *, reset: bool) -> None:
        """Forget `c`; `reset` tells the guest."""
        if self.known(c):
            del self.connections[c.key]
            if reset:
                self.refuse(c.host_port, c.guest_port)
        self.draining.discard(c)
        self.waiting.discard(c)
        self.dialled.discard(c)
        self.unqueue(c)
        self.deadline(c, None)
        c.backlog.clear()
        if c.state != CLOSING:
            self._poller.discard(c.sock)
        c.state = CLOSING
        self.freed()

    def unqueue(self, c: Connection) -> None:
        """`c` has nothing for the guest any more."""
        if c.queued:
            c.queued = False
            with contextlib.suppress(ValueError):
                self.ready.remove(c)
