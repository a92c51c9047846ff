"""HTTP over a UNIX socket for httpx, by asyncio's own transports.

Not by anyio's, which httpx would take: its UNIX streams answer a cancellation that meets an arrival, as of a cell
that is stopped while events come, with an `asyncio.InvalidStateError` in a callback (anyio 4.16, its newest).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpcore
import httpx


class UnixTransport(httpx.AsyncHTTPTransport):
    """What ``httpx.AsyncHTTPTransport(uds=path)`` is, over other streams."""

    def __init__(self, path: str) -> None:
        super().__init__(verify=False)  # no TLS here: spares the certificate store, 20 ms each time
        # httpcore's parameter for streams, which httpx 0.28 does not pass on; the bounds are httpx's own.
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            uds=path,
            network_backend=_Backend(),
        )


class _Backend(httpcore.AsyncNetworkBackend):
    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        with _raised(httpcore.ConnectTimeout, httpcore.ConnectError), anyio.fail_after(timeout):
            return _Stream(*await asyncio.open_unix_connection(path))

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _raised(httpcore.ReadTimeout, httpcore.ReadError), anyio.fail_after(timeout):
            return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _raised(httpcore.WriteTimeout, httpcore.WriteError), anyio.fail_after(timeout):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.transport.abort()
        await anyio.lowlevel.checkpoint()

    def get_extra_info(self, info: str) -> Any:
        if info != "is_readable":
            return None
        # Asked of a connection at rest: its server says nothing unasked, so that it has ended.
        return self._reader.at_eof() or self._reader.exception() is not None


@contextmanager
def _raised(late: type[Exception], broken: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error
