"""A UNIX socket that takes connections, over asyncio's own transports.

Not anyio's: its UNIX streams answer a cancellation that meets an arrival with an error in a callback.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream, TaskGroup

BACKLOG = 128


class LocalStream(ByteStream):
    """One connection. Errors are those of anyio's streams, and OSError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        # A send returns once the kernel has all of it, so that nothing is left to flush at the end.
        writer.transport.set_write_buffer_limits(high=0)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes, at least one."""
        data = await self._reader.read(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send all of it."""
        self._writer.write(item)
        await self._writer.drain()

    async def send_eof(self) -> None:
        """Nothing more comes."""
        self._writer.write_eof()
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close it, whatever the other side is at."""
        self._writer.transport.abort()
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def listening(
    path: Path, serve: Callable[[LocalStream], Coroutine[Any, Any, None]], tasks: TaskGroup
) -> AsyncIterator[None]:
    """Have `serve` called in `tasks` for every connection to `path`, which is this user's only (mode 0600)."""

    def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.start_soon(serve, LocalStream(reader, writer))

    server = await asyncio.start_unix_server(taken, path, backlog=BACKLOG, start_serving=False)
    try:
        # The directory is private already; the mode is the second lock.
        await anyio.Path(path).chmod(0o600)
        await server.start_serving()
        yield
    finally:
        server.close()
        with anyio.CancelScope(shield=True):
            await anyio.Path(path).unlink(missing_ok=True)
