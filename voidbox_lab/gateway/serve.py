"""Serves a gateway on a UNIX socket, which is where boxes' connections arrive."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from voidbox_lab.errors import ProviderError

STARTUP_S = 10.0
SHUTDOWN_S = 3
HEAD_S = 30.0
"""Seconds a client has, from connecting or from the first byte, to send a request's headers."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals belong to the daemon."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 (16 KiB of headers at most), and an end to waiting for headers, which it lacks."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._wait()
        super().data_received(data)
        if not self._idle():
            self._wait_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        # From here on it is not an HTTP connection, and may be silent as long as it likes.
        self._wait_no_more()
        super().handle_websocket_upgrade(event)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        # Not put off by each byte: one every few seconds would hold the connection for ever.
        if self._deadline is None and self._idle():
            self._deadline = self.loop.call_later(HEAD_S, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


@asynccontextmanager
async def serving(
    app: ASGIApp, sock: socket.socket, *, websocket_bytes: int | None = None
) -> AsyncGenerator[None]:
    """Serve `app` on a bound socket for the time of the context.

    Args:
        websocket_bytes: the longest WebSocket message taken; None: no WebSockets at all.

    Raises:
        ProviderError: the server did not start within 10 s.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        # The one of uvicorn's that reads no further than its app does and waits while the client does not read.
        ws="none" if websocket_bytes is None else "websockets-sansio",
        ws_max_size=websocket_bytes or 0,
        # Apps have heartbeats of their own: a client that is stopped, or whose terminal is, answers no ping.
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        log_config=None,
        # Its warnings are about clients, and a guest could write as many as it likes.
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        # Else whoever comes from 127.0.0.1 could say by X-Forwarded-For that it is somebody else.
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=SHUTDOWN_S,
        limit_concurrency=1024,
    )
    server = _Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [sock])
        with anyio.move_on_after(STARTUP_S) as started:
            # uvicorn has no other way to say so.
            while not server.started:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        if started.cancelled_caught:
            raise ProviderError(f"The gateway's server did not start within {STARTUP_S:g} s.", cause="timeout")
        try:
            yield
        finally:
            # Leaving the task group waits for it; graceful shutdown is bounded by uvicorn.
            server.should_exit = True


@asynccontextmanager
async def serving_unix(app: ASGIApp, path: Path, *, websocket_bytes: int | None = None) -> AsyncGenerator[None]:
    """Serve `app` on a new UNIX socket at `path`, for this user only (mode 0600); else as `serving`."""
    with _bound(path) as sock:
        async with serving(app, sock, websocket_bytes=websocket_bytes):
            yield


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        # The directory is private already (Settings.prepare); the mode is the second lock.
        path.chmod(0o600)
        sock.listen(512)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)
