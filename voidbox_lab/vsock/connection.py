"""One vsock connection as the device sees it: state and credit, no input or output.

Not for sockets or rings: `switch` moves the bytes and asks here what is allowed. Source: VIRTIO 1.2
§5.10.6.3 (credit), §5.10.6.4 (receive), §5.10.6.5 (stream sockets, shutdown).

The guest is not trusted: it can claim any credit it likes for itself, which costs only itself, but it
cannot make the device hold more than `window` bytes for it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from voidbox_lab.vsock import packets

if TYPE_CHECKING:
    import socket

WAITING, REQUESTED, ESTABLISHED, CLOSING = range(4)
"""Waiting for the host's listener (guest-initiated); request sent to the guest (host-initiated); up;
host's end gone, waiting for the guest to agree."""

_M = packets.MASK32


class Violation(Exception):
    """The guest broke the stream protocol on one connection; the answer is RST."""


class Connection:
    """State, credit and pending control packets of one connection."""

    __slots__ = (
        "_advertised",
        "_peer_buffer",
        "_peer_forwarded",
        "_pending",
        "_starved",
        "backlog",
        "burst",
        "cid",
        "deadline",
        "forwarded",
        "guest_port",
        "host_port",
        "hung_up",
        "local_shutdown",
        "peer_shutdown",
        "queued",
        "readable",
        "received",
        "sent",
        "sock",
        "state",
        "window",
    )  # fmt: skip

    def __init__(
        self, cid: int, host_port: int, guest_port: int, *, state: int, window: int, sock: socket.socket
    ) -> None:
        self.cid, self.host_port, self.guest_port = cid, host_port, guest_port
        self.state, self.window, self.sock = state, window, sock
        # Guest to host: bytes that came, bytes the host's socket took, what the guest was last told.
        self.received = self.forwarded = self._advertised = 0
        # Host to guest.
        self.sent = self._peer_buffer = self._peer_forwarded = 0
        self._starved = False
        self.backlog = bytearray()
        """Bytes from the guest that the host's socket would not take yet; at most `window`."""
        self.local_shutdown = self.peer_shutdown = 0
        self._pending: deque[int] = deque()
        self.readable = False
        """The host's socket may have bytes (edge-triggered: until a read says otherwise)."""
        self.hung_up = False
        """The host's socket reported that its peer closed."""
        self.queued = False
        """In the switch's list of connections with something for the guest."""
        self.burst = 1
        """Buffers to fill by one read: grows while reads fill them, so that small messages stay cheap."""
        self.deadline: float | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Host port and guest port: unique in one device, whose two CIDs are fixed."""
        return self.host_port, self.guest_port

    # -- guest to host -------------------------------------------------------------------------

    def accept(self, count: int) -> None:
        """Account for `count` bytes of payload from the guest.

        Raises:
            Violation: not established, shut down by the guest itself, or beyond its credit.
        """
        if self.state not in (ESTABLISHED, CLOSING) or self.peer_shutdown & packets.SHUT_SEND:
            raise Violation("data outside an open stream")
        self.received += count
        if self.received - self.forwarded > self.window:
            raise Violation("data beyond its credit")

    def release(self, count: int) -> None:
        """`count` bytes left the device; tell the guest when half its window is to be had again."""
        self.forwarded += count
        if self.forwarded - self._advertised >= self.window // 2:
            self.ask(packets.CREDIT_UPDATE)

    # -- host to guest -------------------------------------------------------------------------

    def peer(self, buffer: int, forwarded: int) -> None:
        """Take over the guest's `buf_alloc` and `fwd_cnt`, which every packet carries."""
        self._peer_buffer, self._peer_forwarded = buffer, forwarded

    def credit(self) -> int:
        """Bytes the guest will take now; 0 also when its counters make no sense."""
        # Both counters are free-running modulo 2**32 (§5.10.6.3).
        free = self._peer_buffer - ((self.sent - self._peer_forwarded) & _M)
        if free > 0:
            self._starved = False
            return free
        return 0

    def starve(self) -> None:
        """Out of credit with bytes waiting: ask the guest once, then rely on its updates."""
        if not self._starved:
            self._starved = True
            self.ask(packets.CREDIT_REQUEST)

    @property
    def wants_read(self) -> bool:
        """Bytes from the host's socket could go to the guest now or after a credit request."""
        return (
            self.readable
            and self.state == ESTABLISHED
            and not self.local_shutdown & packets.SHUT_SEND
            and not self.peer_shutdown & packets.SHUT_RECEIVE
            and (not self._starved or self.credit() > 0)
        )

    # -- control packets -----------------------------------------------------------------------

    def ask(self, operation: int) -> None:
        """Have a packet of `operation` sent; asking twice sends one, so the list stays short."""
        if operation not in self._pending:
            self._pending.append(operation)

    @property
    def has_control(self) -> bool:
        """A control packet is waiting."""
        return bool(self._pending)

    def next_control(self) -> bytes:
        """The next control packet, ready to go."""
        operation = self._pending.popleft()
        return self.header(operation, flags=self.local_shutdown if operation == packets.SHUTDOWN else 0)

    def header(self, operation: int, *, length: int = 0, flags: int = 0) -> bytes:
        """A packet header that also tells the guest its newest credit."""
        out = packets.HEADER.pack(*self._fields(operation, length, flags))
        self._told()
        return out

    def write_header(self, into: memoryview, length: int) -> None:
        """The header of an RW packet of `length` bytes, written in place."""
        packets.HEADER.pack_into(into, 0, *self._fields(packets.RW, length, 0))
        self._told()

    def _fields(self, operation: int, length: int, flags: int) -> tuple[int, ...]:
        return (
            packets.HOST_CID,
            self.cid,
            self.host_port,
            self.guest_port,
            length,
            packets.TYPE_STREAM,
            operation,
            flags,
            self.window,
            self.forwarded & _M,
        )

    def _told(self) -> None:
        self._advertised = self.forwarded
        if self._pending and packets.CREDIT_UPDATE in self._pending:
            self._pending.remove(packets.CREDIT_UPDATE)
