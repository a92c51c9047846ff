"""An event stream taken up where it broke: on the UNIX socket and over TCP, cut anywhere, and past the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.daemon.test_api import spec
from tests.engine.doubles import says
from voidbox_lab.client import AsyncClient
from voidbox_lab.client.way import way
from voidbox_lab.settings import Settings

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def cutting(far: Any, over: str, cuts: list[int]) -> AsyncIterator[Settings]:
    """Settings of a client whose event streams are cut after so many bytes of an answer each, then left whole."""
    path = far.settings.runtime / "cut" / "daemon.sock"
    path.parent.mkdir(mode=0o700)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if over == "unix":
            there, back = await asyncio.open_unix_connection(str(far.settings.socket))
        else:
            url = httpx.URL(far.url)
            there, back = await asyncio.open_connection(url.host, url.port)
        left = 1 << 40

        async def up() -> None:
            nonlocal left
            while data := await reader.read(1 << 16):
                if b"/events" in data and cuts:
                    left = cuts.pop(0)
                back.write(data)
            back.close()

        task = asyncio.create_task(up())
        # Either end may go away at any time; that is what this is for.
        with suppress(OSError):
            while left > 0 and (data := await there.read(min(left, 1 << 16))):
                writer.write(data)
                left -= len(data)
        for end in (writer, back):
            end.close()
        with suppress(OSError):
            await task

    if over == "unix":
        server = await asyncio.start_unix_server(carry, path)
        settings = replace(far.settings, runtime=path.parent)
    else:
        server = await asyncio.start_server(carry, "127.0.0.1")
        settings = replace(far.remote, daemon=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    yield settings
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_cut_in_the_middle_of_events(far: Any, over: str) -> None:
    """In the head, in an id, in the data, between events: each event arrives once, in order."""
    far.backend.scripts["one"] = says(*(f"word {n} é" for n in range(80)), result="ok")
    record = await far.client.submit(spec("one"))
    whole = [e async for e in far.client.events(record.id)]
    cuts = [5, 300, 333, 601, 1001, 1500]
    async with cutting(far, over, cuts) as settings, AsyncClient(settings, start=False, env={}) as client:
        with anyio.fail_after(60):
            assert [e async for e in client.events(record.id)] == whole
    assert not cuts, "some were not needed, so not all of it was tried"


@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_last_event_id(far: Any, over: str) -> None:
    """By the header, as a browser resumes; it goes before `after`. Beyond the end there is nothing, and an end."""
    record = await far.client.submit(spec("one"))
    last = [e async for e in far.client.events(record.id)][-1].seq
    path = f"/v1/runs/{record.id}/events"
    async with way(far.settings if over == "unix" else far.remote).async_client() as http:
        for given, rest in [(0, last), (last - 1, 1), (last, 0), (last + 1, 0), ((1 << 53) - 1, 0)]:
            for query in ("", "?after=2"):
                with anyio.fail_after(10):
                    response = await http.get(path + query, headers={"Last-Event-ID": str(given)})
                assert response.status_code == 200
                assert ids(response) == list(range(given + 1, last + 1)) if rest else ids(response) == []


@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_beyond_the_end_of_a_run_that_goes_on(far: Any, over: str) -> None:
    """It waits, tells what comes after that number and nothing before it, and ends with the run."""
    record = await far.client.submit(spec("slow"))
    async with way(far.settings if over == "unix" else far.remote).async_client() as http:
        headers = {"Last-Event-ID": "1000"}
        with anyio.fail_after(10):
            async with http.stream("GET", f"/v1/runs/{record.id}/events", headers=headers) as response:
                await far.client.cancel(record.id)
                await response.aread()
    assert ids(response) == []
    assert (await far.client.run(record.id)).state == "cancelled"


def ids(response: httpx.Response) -> list[int]:
    return [int(line.removeprefix("id: ")) for line in response.text.splitlines() if line.startswith("id: ")]


def test_paths_are_short_enough(settings: Settings) -> None:
    """The double above puts a socket one directory deeper."""
    assert len(str(Path(settings.runtime) / "cut" / "daemon.sock")) < 107
