"""From the guest to the host: packets out of the tx ring, payload into UNIX sockets.

Not for the other direction: see `downlink`. Payload goes from guest memory to the socket by one system
call; only what the socket will not take is copied, up to the connection's window.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from voidbox_lab.vsock import packets
from voidbox_lab.vsock.connection import CLOSING, ESTABLISHED, REQUESTED, Connection, Violation
from voidbox_lab.vsock.poller import EDGES, OUT
from voidbox_lab.vsock.table import DRAIN_S
from voidbox_lab.vsock.virtqueue import MAX_VECTORS, Chain, Virtqueue, clip

if TYPE_CHECKING:
    from voidbox_lab.vsock.doors import Doors
    from voidbox_lab.vsock.poller import Poller
    from voidbox_lab.vsock.table import Table

MAX_RESETS = 256
"""Refusals waiting for the guest's receive buffers, after which its packets are not read."""
_CHAINS = 64


class Uplink:
    """Reads `tx` and serves each packet."""

    def __init__(self, poller: Poller, table: Table, doors: Doors) -> None:
        self.tx = Virtqueue(writable=False)
        self.dropped = 0
        """Packets that were no packets: too short, or from or to somebody else."""
        self._poller, self._table, self._doors = poller, table, doors

    @property
    def gated(self) -> bool:
        """Waiting for the guest to take refusals before more of its packets are read."""
        return len(self._table.resets) >= MAX_RESETS

    def turn(self) -> bool:
        """Serve a bounded number of packets; True if there may be more.

        Raises:
            RingFault, MemoryFault: the guest's ring cannot be trusted any more.
        """
        tx, budget = self.tx, _CHAINS
        try:
            while budget and not self.gated:
                if not tx.staged and not tx.stage(budget):
                    if not tx.arm():
                        break
                    continue
                chain = tx.staged.popleft()
                self._packet(chain)
                tx.complete(chain.head, 0)
                budget -= 1
        finally:
            tx.flush()
        return budget == 0

    def _packet(self, chain: Chain) -> None:
        size = packets.HEADER_SIZE
        if chain.length < size:
            self.dropped += 1
            return
        if chain.split(size) and chain.header is not None:
            fields = packets.HEADER.unpack_from(chain.header)
        else:
            # Header in pieces: legal, never seen. Copying it all is simpler than being quick.
            whole = chain.gather(min(chain.length, size + packets.MAX_PAYLOAD))
            fields = packets.HEADER.unpack_from(whole)
            chain.payload = [memoryview(whole)[size:]]
        source, target, guest_port, host_port, length, kind, operation, flags, buffer, forwarded = fields
        if source != self._table.cid or target != packets.HOST_CID:
            self.dropped += 1
            return
        if kind != packets.TYPE_STREAM:
            if operation != packets.RST:
                self._table.refuse(host_port, guest_port, kind)
            return
        c = self._table.connections.get((host_port, guest_port))
        if c is None:
            if operation == packets.REQUEST:
                self._doors.guest_dials(host_port, guest_port, buffer, forwarded)
            elif operation != packets.RST:
                self._table.refuse(host_port, guest_port)
            return
        c.peer(buffer, forwarded)
        try:
            if operation == packets.RW:
                self._data(c, chain, length)
            else:
                self._control(c, operation, flags)
        except Violation:
            self._table.drop(c, reset=True)
            return
        if c.wants_read or c.has_control:
            self._table.queue(c)

    def _control(self, c: Connection, operation: int, flags: int) -> None:
        if operation == packets.RST:
            if c.state == REQUESTED:
                self._doors.guest_refuses(c)
            # After an orderly shutdown the guest's last words may still be waiting for the host.
            if c.peer_shutdown == packets.SHUT_BOTH and c.backlog:
                self._table.drain(c)
            else:
                self._table.drop(c, reset=False)
        elif operation == packets.RESPONSE:
            self._doors.guest_accepts(c)
        elif operation == packets.SHUTDOWN:
            self._guest_shuts(c, flags & packets.SHUT_BOTH)
        elif operation == packets.CREDIT_REQUEST:
            c.ask(packets.CREDIT_UPDATE)
        elif operation != packets.CREDIT_UPDATE:
            raise Violation(f"operation {operation} on an open connection")

    def _data(self, c: Connection, chain: Chain, length: int) -> None:
        if length > packets.MAX_PAYLOAD or length > chain.length - packets.HEADER_SIZE:
            raise Violation(f"packet of {length} bytes")
        if not length:
            return
        c.accept(length)
        if c.state == CLOSING or c.local_shutdown & packets.SHUT_RECEIVE:
            c.release(length)  # the host does not listen any more: taken and thrown away
            return
        views = clip(chain.payload, length)
        taken = 0
        if not c.backlog:
            try:
                taken = c.sock.sendmsg(views[:MAX_VECTORS])
            except BlockingIOError:
                pass
            except OSError:
                c.release(length)
                self._table.host_deaf(c)
                return
            c.release(taken)
        if taken < length:
            if not c.backlog:
                self._poller.modify(c.sock, EDGES | OUT)
            for view in views:
                if taken >= len(view):
                    taken -= len(view)
                else:
                    c.backlog += view[taken:]
                    taken = 0

    def flush_backlog(self, c: Connection) -> None:
        """The host's socket takes bytes again: give it what was held back."""
        if not c.backlog:
            return
        sent = 0
        try:
            with memoryview(c.backlog) as view:
                while sent < len(view):
                    sent += c.sock.send(view[sent : sent + packets.MAX_PAYLOAD])
        except BlockingIOError:
            pass
        except OSError:
            c.release(len(c.backlog))
            c.backlog.clear()
            self._table.host_deaf(c)
            if c.peer_shutdown == packets.SHUT_BOTH:
                self._table.drop(c, reset=c not in self._table.draining)
            return
        del c.backlog[:sent]
        c.release(sent)
        if c.backlog:
            if sent and c.deadline is not None:
                self._table.deadline(c, DRAIN_S)
            return
        self._poller.modify(c.sock, EDGES)
        if c.peer_shutdown == packets.SHUT_BOTH:
            self._table.drop(c, reset=c not in self._table.draining)
        elif c.peer_shutdown & packets.SHUT_SEND:
            _shut(c.sock, socket.SHUT_WR)

    def _guest_shuts(self, c: Connection, flags: int) -> None:
        if c.state not in (ESTABLISHED, CLOSING):
            raise Violation("shutdown of a connection that is not open")
        c.peer_shutdown |= flags
        if c.peer_shutdown == packets.SHUT_BOTH:
            if c.backlog and c.state == ESTABLISHED:
                self._table.deadline(c, DRAIN_S)
            else:
                self._table.drop(c, reset=True)
            return
        if flags & packets.SHUT_RECEIVE:
            _shut(c.sock, socket.SHUT_RD)
        if flags & packets.SHUT_SEND and not c.backlog:
            _shut(c.sock, socket.SHUT_WR)


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # its peer may be gone already
        sock.shutdown(how)
