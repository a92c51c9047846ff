"""A daemon in this process, on a real UNIX socket (and TCP, `far`), over the fake backend."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from tests.daemon.doubles import fake_backend
from voidbox_lab.client import AsyncClient
from voidbox_lab.daemon import app, ratelimit, tcp, token
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.engine import Capacity
from voidbox_lab.gateway.serve import serving_unix
from voidbox_lab.settings import Address, Settings
from voidbox_lab.spec.api import MAX_SHELL_MESSAGE


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a home of this test's own. Its sockets are outside of it, in a short path, and go at the end."""
    made = Settings.from_env({"VOIDBOX_HOME": str(tmp_path / "home")}).prepare()
    yield made
    shutil.rmtree(made.runtime)


@pytest.fixture
async def house(settings: Settings) -> AsyncIterator[Any]:
    """`daemon`, its `api` and fake `backend`, and a connected `client`."""
    async with AsyncExitStack() as stack:
        capacity = Capacity(memory_mb=4096, vcpus=8)
        daemon = await stack.enter_async_context(Daemon.open(settings, fake_backend, capacity=capacity))
        api = app.create(daemon)
        own = ratelimit.Limited(api, ratelimit.UNIX)
        await stack.enter_async_context(serving_unix(own, settings.socket, websocket_bytes=MAX_SHELL_MESSAGE))
        client = await stack.enter_async_context(AsyncClient(settings, start=False, env={}))
        yield SimpleNamespace(daemon=daemon, backend=daemon.backend, client=client, settings=settings, api=api)
        daemon.stop()
        with anyio.fail_after(20):
            await daemon.wind_down()


@pytest.fixture
async def far(house: Any) -> AsyncIterator[Any]:
    """The house on TCP too: what it has, and its `url` and `token`, and `remote` settings of a client of these."""
    secret = token.token(house.settings)
    sock = tcp.bound(Address("127.0.0.1", 0))
    async with tcp.serving_tcp(house.api, sock, "127.0.0.1", secret) as url:
        remote = replace(house.settings, daemon=url, token=secret)
        yield SimpleNamespace(**vars(house), url=url, token=secret, remote=remote)
    sock.close()
