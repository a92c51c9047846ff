"""Serves a gateway on a UNIX socket, which is where boxes' connections arrive."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import uvicorn
from starlette.types import ASGIApp

from voidbox_lab.errors import ProviderError

STARTUP_S = 10.0
SHUTDOWN_S = 3


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals belong to the daemon."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: ASGIApp, sock: socket.socket) -> AsyncGenerator[None]:
    """Serve `app` on a bound socket for the time of the context.

    Raises:
        ProviderError: the server did not start within 10 s.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
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
async def serving_unix(app: ASGIApp, path: Path) -> AsyncGenerator[None]:
    """Serve `app` on a new UNIX socket at `path`, for this user only (mode 0600)."""
    with _bound(path) as sock:
        async with serving(app, sock):
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
