"""How connections begin: host clients that say CONNECT, guests that dial, and their sockets' events.

Not for what follows: see `uplink`, `downlink`. Nothing here blocks, whatever clients do or leave undone.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from typing import TYPE_CHECKING

from voidbox_lab.vsock import packets, table
from voidbox_lab.vsock.connection import ESTABLISHED, REQUESTED, WAITING, Connection, Violation
from voidbox_lab.vsock.poller import EDGES, ERR, HUP, IN, OUT, RDHUP

if TYPE_CHECKING:
    from collections.abc import Callable

    from voidbox_lab.vsock.poller import Poller

COMMAND_S = 5.0
"""Seconds a host client has for its CONNECT line."""
REQUEST_S = 120.0
"""Seconds the guest has to answer a request (its driver may still be loading); clients give up earlier."""
BACKLOG_S = 2.0
"""Seconds for which a guest's dial to a host listener whose backlog is full is tried again."""

REFUSED, BUSY = b"REFUSED\n", b"BUSY\n"
"""Said before hanging up where Firecracker says nothing; its clients look for ``OK`` alone."""

_FIRST_PORT = 1 << 30
_LINE = 32


class Doors:
    """Both doors of a switch: `listener` for host clients, ``<path>_P`` for a guest that dials port P.

    `writable` is called when a connection's socket takes bytes again.
    """

    def __init__(self, poller: Poller, connections: table.Table, *, path: str, listener: socket.socket) -> None:
        self.path = path
        self.writable: Callable[[Connection], None] = lambda _c: None
        self.listening = False
        self._poller, self._table, self._listener = poller, connections, listener
        self._dials: dict[socket.socket, float] = {}
        self._next_port = _FIRST_PORT
        connections.freed = self.listen
        self.listen()

    def listen(self) -> None:
        """Take host clients (again)."""
        if not self.listening:
            self.listening = True
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
                self.listening = False
                return
            sock.setblocking(False)
            if self._table.count() >= table.MAX_CONNECTIONS:
                with contextlib.suppress(OSError):
                    sock.send(BUSY)
                sock.close()
                continue
            self._dials[sock] = time.monotonic() + COMMAND_S
            self._table.pending += 1
            self._poller.add(sock, EDGES, functools.partial(self._command, sock))

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
        self._table.pending -= 1
        c = Connection(
            self._table.cid, self._port(port), port, state=REQUESTED, window=self._table.window(), sock=sock
        )
        self._table.connections[c.key] = c
        self._poller.add(sock, EDGES, functools.partial(self._host_event, c))
        self._table.deadline(c, REQUEST_S)
        c.ask(packets.REQUEST)
        self._table.queue(c)

    def _hang_up(self, sock: socket.socket) -> None:
        del self._dials[sock]
        self._table.pending -= 1
        self._poller.discard(sock)
        self.listen()

    def _port(self, guest_port: int) -> int:
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < packets.MASK32 - 1 else _FIRST_PORT
            if (port, guest_port) not in self._table.connections:
                return port

    def guest_refuses(self, c: Connection) -> None:
        """Nothing listens in the guest: tell the client, which could not tell a mere end from a dying device."""
        with contextlib.suppress(OSError):
            c.sock.send(REFUSED)

    def guest_accepts(self, c: Connection) -> None:
        """The guest answered a request: tell the client.

        Raises:
            Violation: there was none, or the client is gone.
        """
        if c.state != REQUESTED:
            raise Violation("response to no request")
        answer = b"OK %d\n" % c.host_port
        try:
            if c.sock.send(answer) != len(answer):
                raise Violation("client does not read")
        except OSError:
            raise Violation("client is gone") from None
        c.state = ESTABLISHED
        self._table.opened += 1
        self._table.deadline(c, None)

    def guest_dials(self, host_port: int, guest_port: int, buffer: int, forwarded: int) -> None:
        """The guest wants the host's port; `buffer` and `forwarded` are its first credit."""
        if self._table.count() >= table.MAX_CONNECTIONS or len(self._table.dialled) >= table.MAX_DIALLED:
            self._table.refuse(host_port, guest_port)
            return
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            self._table.refuse(host_port, guest_port)
            return
        c = Connection(
            self._table.cid, host_port, guest_port, state=WAITING, window=self._table.window(), sock=sock
        )
        c.peer(buffer, forwarded)
        self._table.connections[c.key] = c
        self._table.dialled.add(c)
        self._dial_host(c)

    def _dial_host(self, c: Connection) -> None:
        """Connect to the host's listener, which for a UNIX socket happens at once or not at all."""
        try:
            c.sock.connect(f"{self.path}_{c.host_port}")
            self._poller.add(c.sock, EDGES, functools.partial(self._host_event, c))
        except BlockingIOError:
            # Its backlog is full. There is no readiness to wait for; `expire` tries again.
            if c not in self._table.waiting:
                self._table.waiting.add(c)
                self._table.deadline(c, BACKLOG_S)
        except OSError:
            self._table.drop(c, reset=True)
        else:
            c.state = ESTABLISHED
            self._table.opened += 1
            self._table.waiting.discard(c)
            self._table.deadline(c, None)
            c.ask(packets.RESPONSE)
            self._table.queue(c)

    def _host_event(self, c: Connection, events: int) -> None:
        if events & OUT:
            self.writable(c)
        if events & (IN | RDHUP | HUP | ERR):
            c.readable = True
        if events & (HUP | ERR) and not c.hung_up:
            c.hung_up = True
            self._table.host_gone(c)
        if c.wants_read or c.has_control:
            self._table.queue(c)

    def expire(self, now: float) -> None:
        """Hang up on clients that say nothing, and listen again."""
        for sock in [s for s, deadline in self._dials.items() if deadline <= now]:
            self._hang_up(sock)
        self.listen()

    def retry(self) -> None:
        """Try the host's full backlogs again."""
        for c in list(self._table.waiting):
            self._dial_host(c)

    def close(self) -> None:
        """Hang up on clients that were not connected yet, and listen no more."""
        self.listening = True  # as far as `listen` goes: never again
        self._poller.discard(self._listener)
        for sock in list(self._dials):
            self._hang_up(sock)


def _parse(line: bytes) -> int | None:
    words = line.split()
    if len(words) != 2 or words[0] != b"CONNECT" or not words[1].isdigit() or len(words[1]) > 10:
        return None
    port = int(words[1])
    return port if port < packets.MASK32 else None
