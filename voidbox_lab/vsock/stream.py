"""Streams and listeners over non-blocking sockets of any family. Not for addresses or hand-shakes.

Ends look the same over both transports: an orderly end is ``b""``; an abrupt one is ``b""`` or
`anyio.BrokenResourceError`, for neither AF_UNIX nor AF_VSOCK always tells a reset from an end. What
must not be cut short needs its own end mark, as `voidbox_lab.wire` has.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from types import TracebackType

import anyio
from anyio.lowlevel import checkpoint

from voidbox_lab.errors import LimitExceeded, ProviderError

_BROKEN = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_S = 0.02


class Stream:
    """A connected byte stream. One task may receive while another sends."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._sock.fileno()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes, at least one and at most `max_bytes`; ``b""`` at the end of the stream.

        Raises:
            anyio.BrokenResourceError: the peer ended it abruptly.
            anyio.ClosedResourceError: closed on this side.
        """
        await checkpoint()
        while True:
            try:
                return self._open().recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._sock)
            except OSError as error:
                raise self._failed(error) from error

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns once the host's kernel has it.

        Raises:
            anyio.BrokenResourceError: the peer takes no more.
            anyio.ClosedResourceError: closed on this side, or after `send_eof`.
        """
        await checkpoint()
        with memoryview(data).cast("B") as view:
            sent = 0
            while sent < len(view):
                try:
                    sent += self._open().send(view[sent:])
                except BlockingIOError:
                    await anyio.wait_writable(self._sock)
                except OSError as error:
                    raise self._failed(error) from error

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes; receiving goes on. Twice, or after its end, is harmless."""
        await checkpoint()
        with contextlib.suppress(OSError):
            self._open().shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """Close both directions; a task waiting here gets `anyio.ClosedResourceError`."""
        self.close()
        await checkpoint()

    def close(self) -> None:
        """As `aclose`, without a pause."""
        if self._sock.fileno() >= 0:
            anyio.notify_closing(self._sock)
            self._sock.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> socket.socket:
        if self._sock.fileno() < 0:
            raise anyio.ClosedResourceError
        return self._sock

    def _failed(self, error: OSError) -> Exception:
        if self._sock.fileno() < 0:
            return anyio.ClosedResourceError()
        if isinstance(error, _BROKEN):
            return anyio.BrokenResourceError()
        return ProviderError(f"The vsock stream failed: {error}; the box must be started anew.", cause="stream")


class Listener:
    """Connections the guest opened. `admit` is shown each one and may turn it away."""

    def __init__(
        self,
        sock: socket.socket,
        port: int,
        *,
        admit: Callable[[object], bool] | None = None,
        ready: anyio.Event | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        self.port = port
        """The host port the guest dials."""
        self._sock, self._admit, self._ready, self._on_close = sock, admit, ready, on_close

    async def accept(self, timeout_s: float | None) -> Stream:
        """The next connection; None waits until cancelled or closed.

        Raises:
            LimitExceeded: none came within `timeout_s` seconds.
            anyio.ClosedResourceError: closed on this side.
        """
        try:
            with anyio.fail_after(timeout_s):
                if self._ready is not None:
                    await self._ready.wait()
                return await self._accept()
        except TimeoutError:
            raise LimitExceeded(
                f"The guest did not dial host port {self.port} within {timeout_s:g} s; look at its console log.",
                limit="time",
                value=timeout_s,
                unit="s",
                cause="accept-timeout",
            ) from None

    async def _accept(self) -> Stream:
        await checkpoint()
        while True:
            if self._sock.fileno() < 0:
                raise anyio.ClosedResourceError
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                await anyio.wait_readable(self._sock)
                continue
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if self._sock.fileno() < 0:
                    raise anyio.ClosedResourceError from None
                # Out of descriptors: the connection stays in the backlog; others may end meanwhile.
                if error.errno not in _EXHAUSTED:
                    raise ProviderError(f"Host port {self.port} takes no connections: {error}.") from error
                await anyio.sleep(_RETRY_S)
                continue
            if self._admit is None or self._admit(peer):
                return Stream(sock)
            sock.close()

    def close(self) -> None:
        """Stop listening; what waits in the backlog is refused."""
        if self._sock.fileno() >= 0:
            anyio.notify_closing(self._sock)
            self._sock.close()
            if self._on_close is not None:
                self._on_close()
