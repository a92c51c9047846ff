"""Connections that meant to go elsewhere: the host's proxy is asked for them, and what it says is what they get.

The proxy is one of the test. The kernel's part, routes and redirection, is for real boxes: test_egress_vm.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from tests.guest.harness import guest_box
from voidbox_lab.errors import ProviderError, UserError

pytestmark = pytest.mark.anyio

PATCH = """
from voidbox_guest.proxy import Proxy

def operation(self, call):
    return {"listen": self.open(0, call.integer("port", 0, 1, 99), lambda _: "pypi.org:22")}

Proxy.operation = operation
"""
ASKED = b"CONNECT pypi.org:22 HTTP/1.1\r\nHost: pypi.org:22\r\n\r\n"


@asynccontextmanager
async def proxied(tmp_path: Path, says: Sequence[bytes], heard: list[bytes]) -> AsyncIterator[SocketStream]:
    """A connection of a guest to a door whose proxy answers a request with `says`, piece by piece, then echoes."""

    async def proxy(stream: SocketStream) -> None:
        async with stream:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += await stream.receive()
            heard.append(request)
            for piece in says:
                await stream.send(piece)
                await anyio.sleep(0.02)
            async for data in stream:
                await stream.send(data)

    async with guest_box(tmp_path, PATCH) as box, anyio.create_task_group() as tasks:
        tasks.start_soon((await anyio.create_unix_listener(tmp_path / "7")).serve, proxy)
        port = (await box._connection.request("proxy", listen=0, port=7))["listen"]
        with anyio.fail_after(20):
            async with await anyio.connect_tcp("127.0.0.1", port) as client:
                yield client
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "says",
    [
        [b"HTTP/1.1 200 Connection established\r\n\r\n", b"hello"],
        [b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\nhello"],
        [b"HTTP/1.", b"1 200 OK\r", b"\n\r", b"\nhel", b"lo"],
    ],
)
async def test_what_the_proxy_opens_is_joined_to_it(tmp_path: Path, says: list[bytes]) -> None:
    """However its answer is cut, nothing of it is seen, and nothing after it is lost."""
    heard: list[bytes] = []
    async with proxied(tmp_path, says, heard) as client:
        await client.send(b" world" * 50_000)
        await client.send_eof()
        assert b"".join([chunk async for chunk in client]) == b"hello" + b" world" * 50_000
    assert heard == [ASKED]


@pytest.mark.parametrize(
    "says",
    [
        [b"HTTP/1.1 403 not in this stage's egress allowlist\r\n\r\nlong text"],
        [b"HTTP/1.1 502 Bad Gateway\r\n", b"\r\n"],
        [b"HTTP/2 200 OK\r\n\r\nhello"],
        [b"\r\n\r\n"],
        [b"x" * 10_000],
        [b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 2000],
    ],
)
async def test_what_the_proxy_refuses_is_reset(tmp_path: Path, says: list[bytes]) -> None:
    """Not a byte of the refusal is taken for the other side's."""
    async with proxied(tmp_path, says, []) as client:
        with pytest.raises(anyio.BrokenResourceError):
            await client.receive()


async def test_a_network_that_could_not_be_set_up_is_not_taken_for_one(tmp_path: Path) -> None:
    """Nor when it is asked for again; nothing of this host's is touched."""
    patch = """
from voidbox_guest import agent, capture, netlink
class Privileged(capture.Capture):
    def __init__(self, loop, proxy, *, privileged):
        super().__init__(loop, proxy, privileged=True)
agent.Capture = Privileged
capture.MODULES = "/no/such"
del netlink.own_all, netlink.redirect_tcp
"""
    async with guest_box(tmp_path, patch) as box:
        for _ in range(2):
            with pytest.raises(ProviderError, match="cannot be set up"):
                await box._connection.request("capture", port=7)


async def test_only_a_box_catches(tmp_path: Path) -> None:
    """The agent of a test on a host must not change that host's routes."""
    async with guest_box(tmp_path) as box:
        with pytest.raises((UserError, ProviderError), match="only a box"):
            await box._connection.request("capture", port=7)
