"""`KernelTransport` as far as it goes without ``/dev/vhost-vsock``; the conformance suite does the rest."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from voidbox_lab.errors import LimitExceeded, ProviderError, Unavailable, UserError
from voidbox_lab.vsock import (
    KernelTransport,
    Listener,
    Stream,
    Transport,
    VsockDevice,
    kernel,
    kernel_available,
    open_kernel,
)

pytestmark = pytest.mark.anyio


async def test_a_missing_device_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel, "DEVICE", tmp_path / "vhost-vsock")
    reason = kernel_available()
    assert reason is not None
    assert str(tmp_path) in reason
    assert "modprobe" in reason
    with pytest.raises(Unavailable, match="modprobe") as caught:
        await open_kernel(tmp_path)
    assert caught.value.cause == "no-vhost-vsock"


async def test_a_device_that_is_none_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Opening is no test."""
    (tmp_path / "vhost-vsock").write_text("")
    monkeypatch.setattr(kernel, "DEVICE", tmp_path / "vhost-vsock")
    reason = kernel_available()
    assert reason is not None
    assert "does not work" in reason


async def test_cid_is_told_later(tmp_path: Path) -> None:
    transport = KernelTransport(tmp_path)
    assert isinstance(transport, Transport)
    assert transport.domain() == VsockDevice(kind="kernel", socket=None, cid=None)
    with pytest.raises(LimitExceeded, match=r"0\.1 s"):
        await transport.connect(5, 0.1)
    with pytest.raises(UserError, match="not a guest's CID"):
        transport.assigned(2)
    transport.assigned(33)
    assert transport.cid == 33
    assert transport._mine((33, 1024))
    assert not transport._mine((34, 1024))
    assert not transport._mine("elsewhere")
    with pytest.raises(UserError, match="not a vsock port"):
        transport.listen(-5)
    await transport.aclose()


async def test_splice_carries_both_ways_and_half_closes(tmp_path: Path) -> None:
    """What `KernelTransport.forward` does with one connection."""

    near, far = socket.socketpair()
    path = tmp_path / "target"

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            got = b""
            async for part in stream:
                got += part
            await stream.send(got.upper())

    server = await anyio.create_unix_listener(path)
    async with server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, answer)
        tasks.start_soon(kernel._splice, Stream(far), path)
        async with Stream(near) as guest:
            await guest.send(b"request")
            await guest.send_eof()
            assert await guest.receive() == b"REQUEST"
            assert await guest.receive() == b""
        tasks.cancel_scope.cancel()


async def test_splice_to_nothing_closes_the_guest(tmp_path: Path) -> None:

    near, far = socket.socketpair()
    await kernel._splice(Stream(far), tmp_path / "nobody")
    async with Stream(near) as guest:
        assert await guest.receive() == b""


async def test_forwarded_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over AF_UNIX, which a listener does not tell from AF_VSOCK. One that breaks ends no other."""
    monkeypatch.setattr(kernel, "MAX_DIALLED", 2)
    path, front = tmp_path / "target", socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    front.bind(str(tmp_path / "front"))
    front.listen(8)

    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for part in stream:
                await stream.send(part)

    async def dial() -> Stream:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(tmp_path / "front"))
        stream = Stream(sock)
        with suppress(anyio.BrokenResourceError):
            await stream.send(b"hello")
        return stream

    async def failing(stream: Stream, max_bytes: int = 65536) -> bytes:
        data = await receive(stream, max_bytes)
        if data == b"break":
            raise ProviderError("The vsock stream failed.")
        return data

    receive = Stream.receive
    server = await anyio.create_unix_listener(path)
    with anyio.fail_after(20):
        async with server, anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, echo)
            tasks.start_soon(kernel._serve, Listener(front, 5), path)
            async with await dial() as one, await dial() as two:
                assert await one.receive() == await two.receive() == b"hello"
                async with await dial() as three:
                    with suppress(anyio.BrokenResourceError):
                        assert await three.receive() == b""
                with monkeypatch.context() as m:
                    m.setattr(Stream, "receive", failing)
                    await one.send(b"first")  # the copy that waits began before the patch
                    assert await receive(one) == b"first"
                    await one.send(b"break")
                    with suppress(anyio.BrokenResourceError):
                        assert await receive(one) == b""
                async with await dial() as four:
                    assert await four.receive() == b"hello"
                await two.send(b"still there")
                assert await two.receive() == b"still there"
            tasks.cancel_scope.cancel()
    front.close()
