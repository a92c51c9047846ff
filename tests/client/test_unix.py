"""The client over a UNIX socket: an interruption that meets an arrival, silence, servers that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from voidbox_lab.client.way import Way

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(path: Path, answer: Answer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that reads a request's head and leaves the rest to `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server, Way(str(path), "http://voidbox", socket=str(path)).async_client() as client:
        yield client


async def test_an_interruption_that_meets_an_arrival(tmp_path: Path) -> None:
    """Both in one turn of the event loop, the cancellation first, as when a cell is stopped amid events."""
    loop, troubles = asyncio.get_running_loop(), list[dict[str, Any]]()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    writers: list[asyncio.StreamWriter] = []

    async def stall(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        writers.append(writer)

    try:
        async with served(tmp_path / "s", stall) as client:
            task = asyncio.ensure_future(client.get("/"))
            with anyio.fail_after(10):
                while not writers:
                    await anyio.sleep(0.01)
            await anyio.sleep(0.1)  # it waits for the content
            loop.call_soon(task.cancel)
            writers[0].write(b"x")  # into the socket at once, seen when the loop next looks
            with pytest.raises(asyncio.CancelledError):
                await task
        assert troubles == []
    finally:
        loop.set_exception_handler(before)


async def test_silence_and_ends_are_httpx_own_errors(tmp_path: Path) -> None:
    """What the clients take for a lost daemon."""

    async def silence(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)

    async def gone(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        await writer.drain()
        writer.transport.abort()

    async with served(tmp_path / "silence", silence) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/", timeout=0.2)
    async with served(tmp_path / "gone", gone) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/")
    missing = tmp_path / "missing"
    async with Way(str(missing), "http://voidbox", socket=str(missing)).async_client() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/")


async def test_a_connection_that_ended_at_rest_is_not_used_again(tmp_path: Path) -> None:
    """As after a restart of the daemon."""
    count = 0

    async def once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async with served(tmp_path / "s", once) as client:
        for _ in range(3):
            assert (await client.post("/", content=b"")).text == "ok"
            await anyio.sleep(0.05)
        assert count == 3


async def test_more_than_a_buffer_goes_both_ways(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
        writer.write(await reader.readexactly(len(data)))
        await writer.drain()

    async with served(tmp_path / "s", echo) as client:
        assert (await client.put("/", content=data)).content == data
