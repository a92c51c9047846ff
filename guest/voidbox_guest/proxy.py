"""The ways to the host's gateway and egress proxy: TCP on 127.0.0.1 inside the box, spliced to vsock connections.

Bytes only: what may pass is the host's business. The one exception are connections that meant to go elsewhere
(`capture`): the host's proxy is asked with a CONNECT on their behalf, and they are joined to what it opens. Each
direction holds at most one buffer, so a slow side slows the other instead of filling memory.
"""

from __future__ import annotations

import os
from _socket import AF_INET, SO_ERROR, SO_LINGER, SO_REUSEADDR, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET
from _socket import socket as raw_socket
from errno import EAGAIN, EINPROGRESS

from wire.protocol import BUSY, MAX_PROXIED, MAX_PROXIES, PROXY_PORT

from .calls import Call, OpError
from .loop import BROKEN, READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop, Timer

    Meant = Callable[[raw_socket], str]
    """Where a connection that came in meant to go, as HOST:PORT. Raises OSError: nobody can tell."""

BUFFER = 64 * 1024
CONNECT_S = 10.0
"""Seconds the host gets to take a connection."""
ANSWER_S = 40.0
"""Seconds it gets to answer a CONNECT; its own bounds are shorter."""
MAX_HEAD = 8192
"""Bytes of that answer's head."""
SHUT_WR = 1


class Proxy:
    """Listeners by port. `dial(port)` gives a non-blocking socket that is connecting to the host's `port`."""

    def __init__(self, loop: Loop, dial: Callable[[int], raw_socket]) -> None:
        self._loop, self._dial = loop, dial
        self._doors: dict[int, _Door] = {}
        self.carried = [0, 0]
        """Bytes from the host and to it, of all connections there were."""

    def operation(self, call: Call) -> dict[str, Any]:
        """Listen on `listen` (0: any) and carry every connection to the host's `port`; replaces what was there."""
        listen = call.integer("listen", PROXY_PORT, 0, 65535)
        port = call.integer("port", 0, 1, 0xFFFFFFFE)
        return {"listen": self.open(listen, port)}

    def open(self, listen: int, port: int, meant: Meant | None = None) -> int:
        """Listen on `listen`; with `meant`, ask the host's proxy for where each connection meant to go.

        Raises OpError."""
        if listen in self._doors:
            self._doors.pop(listen).close()
        if len(self._doors) >= MAX_PROXIES:
            raise OpError(BUSY, f"this box listens on {MAX_PROXIES} ports for the host already")
        listener = raw_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", listen))
            listener.listen(128)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise OpError(
                BUSY, f"127.0.0.1:{listen} cannot be listened on: {os.strerror(error.errno or 0)}"
            ) from None
        listen = listener.getsockname()[1]
        self._doors[listen] = _Door(self._loop, listener, lambda: self._dial(port), self.carried, meant)
        return int(listen)


class _Door:
    """One listener and what came in by it: a crowd at one port does not keep anybody from another."""

    def __init__(
        self,
        loop: Loop,
        listener: raw_socket,
        dial: Callable[[], raw_socket],
        carried: list[int],
        meant: Meant | None,
    ) -> None:
        self._loop, self._listener, self._dial, self._carried, self._meant = loop, listener, dial, carried, meant
        self._splices: set[_Splice] = set()
        loop.watch(listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Take no more; what is open goes on."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()

    def _accept(self, _: int) -> None:
        try:
            fd, _address = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept() calls
            inner = raw_socket(fileno=fd)
        except OSError:
            return
        try:
            if len(self._splices) >= MAX_PROXIED:
                raise OSError("too many connections")
            inner.setblocking(False)
            target = self._meant(inner) if self._meant is not None else ""
            outer = self._dial()
        except OSError:
            reset(inner)  # as from a gateway that is down
            return
        self._splices.add(_Splice(self._loop, inner, outer, self._carried, self._splices.discard, target))


def reset(sock: raw_socket) -> None:
    """Close `sock` so that its peer sees a reset, not an end (SO_LINGER of no time, socket(7))."""
    try:
        sock.setsockopt(SOL_SOCKET, SO_LINGER, b"\1\0\0\0\0\0\0\0")
    finally:
        sock.close()


def dial_vsock(port: int) -> raw_socket:
    """A non-blocking AF_VSOCK socket on its way to the host (vsock(7), CID 2)."""
    from _socket import AF_VSOCK

    sock = raw_socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.connect((2, port))
    except OSError as error:
        if error.errno not in (EINPROGRESS, EAGAIN):
            sock.close()
            raise
    return sock


class _Splice:
    """Two sockets, two buffers, half-close carried over.

    With a `target`, the outer one is asked for it first (CONNECT, RFC 9110 section 9.3.6). A refusal is a reset.
    """

    def __init__(
        self,
        loop: Loop,
        inner: raw_socket,
        outer: raw_socket,
        carried: list[int],
        done: Callable[[_Splice], None],
        target: str = "",
    ) -> None:
        self._loop, self._carried, self._done = loop, carried, done
        self._sockets = (inner, outer)
        self._fds = (inner.fileno(), outer.fileno())
        self._buffers: list[bytes | memoryview] = [b"", b""]
        """What was read from each socket and not yet written to the other."""
        self._head: bytes | None = None
        """As much as there is of the answer to the CONNECT; None: none is awaited."""
        if target:
            self._buffers[0] = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii")
            self._head = b""
        self._ended = [False, False]
        self._shut = [False, False]
        self._connected = False
        self._timer: Timer | None = loop.after(CONNECT_S, self._close)
        loop.watch(self._fds[1], WRITE, lambda events: self._ready(1, events))

    def _ready(self, side: int, events: int) -> None:
        try:
            if not self._connected:
                self._connect()
            else:
                if events & (READ | BROKEN):
                    self._read(side)
                self._write(1 - side)
                self._write(side)
            self._wait()
        except OSError:
            self._close()

    def _connect(self) -> None:
        error = self._sockets[1].getsockopt(SOL_SOCKET, SO_ERROR)
        if error:
            raise OSError(error, "connect")
        self._connected = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.after(ANSWER_S, self._close) if self._head is not None else None
        self._loop.watch(self._fds[0], READ, lambda events: self._ready(0, events))

    def _read(self, side: int) -> None:
        if not self._wanted(side):
            return
        try:
            data = self._sockets[side].recv(BUFFER)
        except OSError as error:
            if error.errno == EAGAIN:
                return
            raise
        if side == 1 and self._head is not None:
            self._answer(data)
        elif data:
            self._buffers[side] = data
        else:
            self._ended[side] = True

    def _wanted(self, side: int) -> bool:
        """Whether to read from a socket: not before the last of it went on, nor what would outrun the answer."""
        return not (self._buffers[side] or self._ended[side] or (side == 0 and self._head is not None))

    def _answer(self, data: bytes) -> None:
        """Take some of the answer to the CONNECT. Raises OSError: it is a refusal, or none."""
        head, end, rest = ((self._head or b"") + data).partition(b"\r\n\r\n")
        if not data or len(head) > MAX_HEAD or (end and head[:12] not in (b"HTTP/1.1 200", b"HTTP/1.0 200")):
            raise OSError("the host's proxy refused")
        self._head = None if end else head
        if end:
            self._buffers[1] = rest
            if self._timer is not None:
                self._timer.cancel()

    def _write(self, side: int) -> None:
        """Pass on what was read from the other socket."""
        other = 1 - side
        if self._buffers[other]:
            try:
                sent = self._sockets[side].send(self._buffers[other])
            except OSError as error:
                if error.errno == EAGAIN:
                    return
                raise
            self._carried[side] += sent
            rest = memoryview(self._buffers[other])[sent:]
            self._buffers[other] = rest if len(rest) else b""
        if self._ended[other] and not self._buffers[other] and not self._shut[side]:
            self._shut[side] = True
            self._sockets[side].shutdown(SHUT_WR)

    def _wait(self) -> None:
        if self._shut[0] and self._shut[1]:
            self._close()
            return
        for side in (0, 1):
            events = 0
            if self._wanted(side):
                events |= READ
            if self._buffers[1 - side]:
                events |= WRITE
            if events:
                self._loop.watch(self._fds[side], events, lambda ready, side=side: self._ready(side, ready))
            else:
                self._loop.forget(self._fds[side])

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        inner, outer = self._sockets
        for fd in self._fds:
            self._loop.forget(fd)
        if self._head is not None:
            reset(inner)
        inner.close()
        outer.close()
        self._done(self)
