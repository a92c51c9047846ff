"""From the host to the guest: refusals, control packets and payload into the rx ring.

Not for the other direction: see `uplink`. Payload goes from a UNIX socket straight into as many of
the guest's receive buffers as it fills, by one system call; nothing is held in between.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from voidbox_lab.vsock import packets
from voidbox_lab.vsock.connection import Connection
from voidbox_lab.vsock.table import LINGER_S
from voidbox_lab.vsock.virtqueue import MAX_VECTORS, Chain, Virtqueue, clip

if TYPE_CHECKING:
    from voidbox_lab.vsock.table import Table

_CHAINS = 64
_BURST = 16
"""Buffers filled by one read at most: 64 KiB with Linux guests, then it is another connection's turn."""


class Downlink:
    """Fills `rx` with what the table's connections have for the guest."""

    def __init__(self, table: Table) -> None:
        self.rx = Virtqueue(writable=True, minimum=packets.HEADER_SIZE + 1)
        self._table = table

    def turn(self) -> bool:
        """Send a bounded number of packets; True if more could be sent at once.

        Raises:
            RingFault, MemoryFault: the guest's ring cannot be trusted any more.
        """
        rx, budget = self.rx, _CHAINS
        try:
            while (self._table.resets or self._table.ready) and budget:
                if not rx.staged and not rx.stage(_BURST):
                    if rx.arm():
                        continue
                    return False  # the guest's next buffers come with a kick
                budget -= 1
                if self._table.resets:
                    self._send(self._table.resets.popleft())
                    continue
                c = self._table.ready.popleft()
                c.queued = False
                if c.has_control:
                    self._send(c.next_control())
                elif c.wants_read:
                    self._read_host(c)
                if c.has_control or c.wants_read:
                    self._table.queue(c)
        finally:
            rx.flush()
        return bool(self._table.resets or self._table.ready)

    def _send(self, packet: bytes) -> None:
        chain = self.rx.staged.popleft()
        chain.scatter(packet)
        self.rx.complete(chain.head, len(packet))

    def _read_host(self, c: Connection) -> None:
        """Read from the host's socket straight into as many of the guest's buffers as it fills."""
        credit = c.credit()
        if not credit:
            c.starve()
            return
        rx, staged = self.rx, self.rx.staged
        if len(staged) < c.burst:
            rx.stage(c.burst - len(staged))
        views: list[memoryview] = []
        room = 0
        for chain in islice(staged, c.burst):
            if not chain.split(packets.HEADER_SIZE):
                _split_slowly(chain)
            views += chain.payload
            room += chain.length - packets.HEADER_SIZE
            if room >= credit or len(views) > MAX_VECTORS:
                break
        if room > credit:
            views, room = clip(views, credit), credit
        try:
            count = c.sock.recvmsg_into(views[:MAX_VECTORS])[0]
        except BlockingIOError:
            c.readable = False
            c.burst = 1
            return
        except OSError:
            c.hung_up = True  # reset by its peer: nothing more will come
            count = 0
        if not count:
            self._table.host_eof(c)
            return
        c.sent += count
        c.burst = min(2 * c.burst, _BURST) if count == room else 1
        if c.deadline is not None:
            self._table.deadline(c, LINGER_S)
        left = count
        while left:
            chain = staged.popleft()
            part = min(left, chain.length - packets.HEADER_SIZE)
            if chain.header is not None:
                c.write_header(chain.header, part)
            else:
                chain.scatter(c.header(packets.RW, length=part))
            rx.complete(chain.head, packets.HEADER_SIZE + part)
            left -= part


def _split_slowly(chain: Chain) -> None:
    """Set the payload of a chain whose header spans descriptors; its header is then scattered."""
    skip, payload = packets.HEADER_SIZE, []
    for view in chain.views:
        if skip < len(view):
            payload.append(view[skip:])
        skip = max(0, skip - len(view))
    chain.payload = payload
