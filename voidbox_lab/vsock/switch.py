"""The switch between the guest's rings and the host's UNIX sockets: every connection of one box.

Not for vhost-user (`backend`) or process life (`device`). One `turn` does a bounded amount of work
and never blocks; payload goes between guest memory and sockets in one copy, the kernel's.

Bounds, all against a hostile guest or a stuck host process: `MAX_CONNECTIONS`, bytes held per
connection (its window) and in all (`MEMORY_BUDGET` shared out), resets waiting for the guest
(`MAX_RESETS`, after which its packets are not read), and a deadline on every state that waits.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from voidbox_lab.vsock import packets
from voidbox_lab.vsock.connection import CLOSING, ESTABLISHED, REQUESTED, WAITING, Connection, Violation
from voidbox_lab.vsock.poller import ERR, ET, HUP, IN, OUT, RDHUP
from voidbox_lab.vsock.virtqueue import Chain, Virtqueue

if TYPE_CHECKING:
    from voidbox_lab.vsock.poller import Poller

MAX_CONNECTIONS = 1024
MAX_RESETS = 256
MEMORY_BUDGET = 32 << 20
"""Bytes shared out as windows; the first 128 connections get `MAX_WINDOW`, the last ones `MIN_WINDOW`."""
MAX_WINDOW, MIN_WINDOW = 256 << 10, 64 << 10

COMMAND_S = 5.0
"""Seconds a host client has for its CONNECT line."""
REQUEST_S = 120.0
"""Seconds the guest has to answer a request (its driver may still be loading); clients give up earlier."""
BACKLOG_S, BACKLOG_TICK_S = 2.0, 0.01
"""A guest's dial to a host listener whose backlog is full is tried again this long, this often."""
LINGER_S = 60.0
"""Seconds without progress until a connection whose host end closed is reset. Linux guests wait 8 s."""
DRAIN_S = 600.0
"""Seconds without progress until the last bytes of a guest's closed connection are given up."""
TICK_S = 0.25

_CHAINS = 64
_BURST = 16
_VECTORS = 512
"""Pieces in one system call; the kernel takes 1024 (UIO_MAXIOV)."""
_FIRST_PORT = 1 << 30
_LINE = 32
_EDGES = IN | RDHUP | ET


class Switch:
    """Carries connections between `rx`/`tx` and UNIX sockets.

    `listener` accepts host clients, who say ``CONNECT <port>\\n`` and hear ``OK <port>\\n``
    (Firecracker's convention; a refused connection is closed without a word). A guest that dials host
    port P is connected to the UNIX socket ``<path>_P``.
    """

    def __init__(self, poller: Poller, *, cid: int, path: str, listener: socket.socket) -> None:
        self.cid, self.path = cid, path
        self.rx = Virtqueue(writable=True, minimum=packets.HEADER_SIZE + 1)
        self.tx = Virtqueue(writable=False)
        self.connections: dict[tuple[int, int], Connection] = {}
        self.dropped = 0
        """Packets that were no packets: too short, or from or to somebody else."""
        self.opened = 0
        self._poller, self._listener = poller, listener
        self._listening = False
        self._dials: dict[socket.socket, float] = {}
        self._draining: set[Connection] = set()
        self._ready: deque[Connection] = deque()
        self._resets: deque[bytes] = deque()
        self._timed: set[Connection] = set()
        self._waiting: set[Connection] = set()
        self._swept = 0.0
        self._next_port = _FIRST_PORT
        self._listen()

    # -- the loop's side -----------------------------------------------------------------------

    def turn(self) -> bool:
        """Move what can be moved, within bounds; True if more could be done at once.

        Raises:
            RingFault, MemoryFault: the guest's rings cannot be trusted any more.
        """
        more = False
        if self.tx.running:
            more = self._from_guest()
        if self.rx.running:
            gated = len(self._resets) >= MAX_RESETS
            more = self._to_guest() or more
            # Packets left in the tx ring for want of room to answer are readable again.
            more = more or (gated and len(self._resets) < MAX_RESETS)
        return more

    def timeout(self) -> float | None:
        """Seconds after which `expire` wants to be called; None for never."""
        if self._waiting:
            return BACKLOG_TICK_S
        if self._timed or self._dials or not self._listening:
            return TICK_S
        return None

    def expire(self) -> None:
        """End what has waited too long and try full backlogs again."""
        now = time.monotonic()
        for c in list(self._waiting):
            self._dial_host(c)
        if now < self._swept + TICK_S:
            return
        self._swept = now
        for c in [c for c in self._timed if c.deadline is not None and c.deadline <= now]:
            self._drop(c, reset=c not in self._draining)
        for sock in [s for s, deadline in self._dials.items() if deadline <= now]:
            self._hang_up(sock)
        self._listen()

    def reset(self) -> None:
        """Forget every connection: the driver starts anew and knows none of them."""
        for c in [*self.connections.values(), *self._draining]:
            self._drop(c, reset=False)
        self._resets.clear()

    def close(self) -> None:
        """End everything, listener included."""
        self.reset()
        for sock in list(self._dials):
            self._hang_up(sock)
        self._poller.discard(self._listener)

    def _count(self) -> int:
        return len(self.connections) + len(self._draining) + len(self._dials)

    def _window(self) -> int:
        return max(MIN_WINDOW, min(MAX_WINDOW, MEMORY_BUDGET // (self._count() + 1)))

    # -- guest to host -------------------------------------------------------------------------

    def _from_guest(self) -> bool:
        tx, budget = self.tx, _CHAINS
        try:
            while budget and len(self._resets) < MAX_RESETS:
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
        if source != self.cid or target != packets.HOST_CID:
            self.dropped += 1
            return
        if kind != packets.TYPE_STREAM:
            if operation != packets.RST:
                self._resets.append(packets.reset(self.cid, host_port, guest_port, kind))
            return
        c = self.connections.get((host_port, guest_port))
        if c is None:
            if operation == packets.REQUEST:
                self._guest_dials(host_port, guest_port, buffer, forwarded)
            elif operation != packets.RST:
                self._resets.append(packets.reset(self.cid, host_port, guest_port))
            return
        c.peer(buffer, forwarded)
        try:
            if operation == packets.RW:
                self._data(c, chain, length)
            else:
                self._control(c, operation, flags)
        except Violation:
            self._drop(c, reset=True)
            return
        if c.wants_read or c.has_control:
            self._queue(c)

    def _control(self, c: Connection, operation: int, flags: int) -> None:
        if operation == packets.RST:
            # After an orderly shutdown the guest's last words may still be waiting for the host.
            if c.peer_shutdown == packets.SHUT_BOTH and c.backlog:
                self._drain(c)
            else:
                self._drop(c, reset=False)
        elif operation == packets.RESPONSE:
            self._guest_accepts(c)
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
        views = _clip(chain.payload, length)
        taken = 0
        if not c.backlog:
            try:
                taken = c.sock.sendmsg(views[:_VECTORS])
            except BlockingIOError:
                pass
            except OSError:
                c.release(length)
                self._host_deaf(c)
                return
            c.release(taken)
        if taken < length:
            if not c.backlog:
                self._poller.modify(c.sock, _EDGES | OUT)
            for view in views:
                if taken >= len(view):
                    taken -= len(view)
                else:
                    c.backlog += view[taken:]
                    taken = 0

    def _flush_backlog(self, c: Connection) -> None:
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
            self._host_deaf(c)
            if c.peer_shutdown == packets.SHUT_BOTH:
                self._drop(c, reset=c not in self._draining)
            return
        del c.backlog[:sent]
        c.release(sent)
        if c.backlog:
            if sent and c.deadline is not None:
                self._deadline(c, DRAIN_S)
            return
        self._poller.modify(c.sock, _EDGES)
        if c.peer_shutdown == packets.SHUT_BOTH:
            self._drop(c, reset=c not in self._draining)
        elif c.peer_shutdown & packets.SHUT_SEND:
            _shut(c.sock, socket.SHUT_WR)

    def _guest_shuts(self, c: Connection, flags: int) -> None:
        if c.state not in (ESTABLISHED, CLOSING):
            raise Violation("shutdown of a connection that is not open")
        c.peer_shutdown |= flags
        if c.peer_shutdown == packets.SHUT_BOTH:
            if c.backlog and c.state == ESTABLISHED:
                self._deadline(c, DRAIN_S)
            else:
                self._drop(c, reset=True)
            return
        if flags & packets.SHUT_RECEIVE:
            _shut(c.sock, socket.SHUT_RD)
        if flags & packets.SHUT_SEND and not c.backlog:
            _shut(c.sock, socket.SHUT_WR)

    # -- opening -------------------------------------------------------------------------------

    def _guest_dials(self, host_port: int, guest_port: int, buffer: int, forwarded: int) -> None:
        if self._count() >= MAX_CONNECTIONS:
            self._resets.append(packets.reset(self.cid, host_port, guest_port))
            return
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            self._resets.append(packets.reset(self.cid, host_port, guest_port))
            return
        c = Connection(self.cid, host_port, guest_port, state=WAITING, window=self._window(), sock=sock)
        c.peer(buffer, forwarded)
        self.connections[c.key] = c
        self._dial_host(c)

    def _dial_host(self, c: Connection) -> None:
        """Connect to the host's listener, which for a UNIX socket happens at once or not at all."""
        try:
            c.sock.connect(f"{self.path}_{c.host_port}")
            self._poller.add(c.sock, _EDGES, functools.partial(self._host_event, c))
        except BlockingIOError:
            # Its backlog is full. There is no readiness to wait for; `expire` tries again.
            if c not in self._waiting:
                self._waiting.add(c)
                self._deadline(c, BACKLOG_S)
        except OSError:
            self._drop(c, reset=True)
        else:
            c.state = ESTABLISHED
            self.opened += 1
            self._waiting.discard(c)
            self._deadline(c, None)
            c.ask(packets.RESPONSE)
            self._queue(c)

    def _listen(self) -> None:
        if not self._listening:
            self._listening = True
            self._poller.add(self._listener, IN, self._host_dials)

    def _host_dials(self, _events: int) -> None:
        for _ in range(16):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # Out of descriptors or the like: stop listening until a connection ends, rather
                # than being woken for the same client for ever.
                self._poller.remove(self._listener)
                self._listening = False
                return
            sock.setblocking(False)
            if self._count() >= MAX_CONNECTIONS:
                sock.close()
                continue
            self._dials[sock] = time.monotonic() + COMMAND_S
            self._poller.add(sock, _EDGES, functools.partial(self._command, sock))

    def _command(self, sock: socket.socket, _events: int) -> None:
        """Read a client's CONNECT line and nothing after it: that belongs to the stream."""
        try:
            line = sock.recv(_LINE, socket.MSG_PEEK)
            end = line.find(b"\n")
            if end < 0 and 0 < len(line) < _LINE:
                return  # the rest of the line raises another edge
            port = _parse(line[: end + 1])
            if port is None:
                self._hang_up(sock)
                return
            sock.recv(end + 1)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(sock)
            return
        self._poller.remove(sock)
        del self._dials[sock]
        c = Connection(self.cid, self._port(port), port, state=REQUESTED, window=self._window(), sock=sock)
        self.connections[c.key] = c
        self._poller.add(sock, _EDGES, functools.partial(self._host_event, c))
        self._deadline(c, REQUEST_S)
        c.ask(packets.REQUEST)
        self._queue(c)

    def _hang_up(self, sock: socket.socket) -> None:
        del self._dials[sock]
        self._poller.discard(sock)
        self._listen()

    def _port(self, guest_port: int) -> int:
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < packets.MASK32 - 1 else _FIRST_PORT
            if (port, guest_port) not in self.connections:
                return port

    def _guest_accepts(self, c: Connection) -> None:
        if c.state != REQUESTED:
            raise Violation("response to no request")
        answer = b"OK %d\n" % c.host_port
        try:
            if c.sock.send(answer) != len(answer):
                raise Violation("client does not read")
        except OSError:
            raise Violation("client is gone") from None
        c.state = ESTABLISHED
        self.opened += 1
        self._deadline(c, None)

    # -- host to guest -------------------------------------------------------------------------

    def _host_event(self, c: Connection, events: int) -> None:
        if events & OUT:
            self._flush_backlog(c)
        if events & (IN | RDHUP | HUP | ERR):
            c.readable = True
        if events & (HUP | ERR) and not c.hung_up:
            c.hung_up = True
            self._host_gone(c)
        if c.wants_read or c.has_control:
            self._queue(c)

    def _host_gone(self, c: Connection) -> None:
        """The host's peer closed; what it sent before is still to be delivered."""
        if c.state == REQUESTED:
            self._drop(c, reset=True)
        elif c.local_shutdown & packets.SHUT_SEND or c.peer_shutdown & packets.SHUT_RECEIVE:
            self._close_host(c)
        elif c.state == ESTABLISHED:
            self._deadline(c, LINGER_S)

    def _host_eof(self, c: Connection) -> None:
        """The host's peer sends no more."""
        c.readable = False
        if c.hung_up:
            self._close_host(c)
        else:
            self._shut_guest(c, packets.SHUT_SEND)

    def _host_deaf(self, c: Connection) -> None:
        """The host's peer reads no more."""
        self._shut_guest(c, packets.SHUT_RECEIVE)

    def _shut_guest(self, c: Connection, flags: int) -> None:
        if c.local_shutdown | flags != c.local_shutdown:
            c.local_shutdown |= flags
            if self._known(c):
                c.ask(packets.SHUTDOWN)
                self._queue(c)

    def _close_host(self, c: Connection) -> None:
        """Let go of the host's socket and wait, not for ever, for the guest's RST."""
        if c.state == CLOSING:
            return
        if not self._known(c):
            self._drop(c, reset=False)
            return
        if c.backlog:
            c.release(len(c.backlog))
            c.backlog.clear()
        self._shut_guest(c, packets.SHUT_BOTH)
        c.state = CLOSING
        self._poller.discard(c.sock)
        self._deadline(c, LINGER_S)
        self._listen()

    def _to_guest(self) -> bool:
        rx, budget = self.rx, _CHAINS
        try:
            while (self._resets or self._ready) and budget:
                if not rx.staged and not rx.stage(_BURST):
                    if rx.arm():
                        continue
                    return False  # the guest's next buffers come with a kick
                budget -= 1
                if self._resets:
                    self._send(self._resets.popleft())
                    continue
                c = self._ready.popleft()
                c.queued = False
                if c.has_control:
                    self._send(c.next_control())
                elif c.wants_read:
                    self._read_host(c)
                if c.has_control or c.wants_read:
                    self._queue(c)
        finally:
            rx.flush()
        return bool(self._resets or self._ready)

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
            if room >= credit or len(views) > _VECTORS:
                break
        if room > credit:
            views, room = _clip(views, credit), credit
        try:
            count = c.sock.recvmsg_into(views[:_VECTORS])[0]
        except BlockingIOError:
            c.readable = False
            c.burst = 1
            return
        except OSError:
            c.hung_up = True  # reset by its peer: nothing more will come
            count = 0
        if not count:
            self._host_eof(c)
            return
        c.sent += count
        c.burst = min(2 * c.burst, _BURST) if count == room else 1
        if c.deadline is not None:
            self._deadline(c, LINGER_S)
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

    # -- endings -------------------------------------------------------------------------------

    def _queue(self, c: Connection) -> None:
        if not c.queued and self._known(c):
            c.queued = True
            self._ready.append(c)

    def _known(self, c: Connection) -> bool:
        """Not one whose ports the guest gave to another since."""
        return self.connections.get(c.key) is c

    def _drain(self, c: Connection) -> None:
        """The guest forgot `c`, the host has not read all of it yet: deliver, then close."""
        del self.connections[c.key]
        self._unqueue(c)
        self._draining.add(c)
        self._deadline(c, DRAIN_S)

    def _drop(self, c: Connection, *, reset: bool) -> None:
        """Forget `c`; `reset` tells the guest."""
        if self._known(c):
            del self.connections[c.key]
            if reset:
                self._resets.append(packets.reset(self.cid, c.host_port, c.guest_port))
        self._draining.discard(c)
        self._waiting.discard(c)
        self._unqueue(c)
        self._deadline(c, None)
        c.backlog.clear()
        if c.state != CLOSING:
            self._poller.discard(c.sock)
        c.state = CLOSING
        self._listen()

    def _unqueue(self, c: Connection) -> None:
        if c.queued:
            c.queued = False
            with contextlib.suppress(ValueError):
                self._ready.remove(c)

    def _deadline(self, c: Connection, seconds: float | None) -> None:
        if seconds is None:
            c.deadline = None
            self._timed.discard(c)
        else:
            c.deadline = time.monotonic() + seconds
            self._timed.add(c)


def _parse(line: bytes) -> int | None:
    words = line.split()
    if len(words) != 2 or words[0] != b"CONNECT" or not words[1].isdigit() or len(words[1]) > 10:
        return None
    port = int(words[1])
    return port if port < packets.MASK32 else None


def _clip(views: list[memoryview], length: int) -> list[memoryview]:
    """The first `length` bytes of `views`."""
    out = []
    for view in views:
        if len(view) >= length:
            out.append(view[:length])
            break
        out.append(view)
        length -= len(view)
    return out


def _split_slowly(chain: Chain) -> None:
    """Set the payload of a chain whose header spans descriptors; its header is then scattered."""
    skip, payload = packets.HEADER_SIZE, []
    for view in chain.views:
        if skip < len(view):
            payload.append(view[skip:])
        skip = max(0, skip - len(view))
    chain.payload = payload


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # its peer may be gone already
        sock.shutdown(how)
