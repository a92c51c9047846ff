"""`Stream` and `Listener` on plain socket pairs."""

from __future__ import annotations

import errno
import socket
import tempfile
from pathlib import Path

import anyio
import pytest

from voidbox_lab.errors import ProviderError
from voidbox_lab.vsock import Listener, Stream

pytestmark = pytest.mark.anyio


def _pair() -> tuple[Stream, Stream]:
    left, right = socket.socketpair()
    return Stream(left), Stream(right)


async def test_large_sends_and_both_ends() -> None:
    left, right = _pair()
    data = bytes(range(256)) * 8192
    got = bytearray()

    async def read() -> None:
        while part := await right.receive():
            got.extend(part)

    async with left, right, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await left.send(memoryview(data))
        await left.send_eof()
        await left.send_eof()
    assert bytes(got) == data


async def test_receive_is_bounded_by_what_was_asked() -> None:
    left, right = _pair()
    async with left, right:
        await left.send(b"abcdef")
        assert await right.receive(4) == b"abcd"
        assert await right.receive(4) == b"ef"


async def test_a_vanished_peer_breaks_sending() -> None:
    left, right = _pair()
    await right.aclose()
    async with left:
        with pytest.raises(anyio.BrokenResourceError):
            await left.send(b"x")
        assert await left.receive() == b""


async def test_own_close_wakes_a_receiver_and_stays_closed() -> None:
    left, right = _pair()
    woken = []

    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await left.receive()
        woken.append(True)

    with anyio.fail_after(5):
        async with right, anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(0.05)
            await left.aclose()
    assert woken
    assert left.fileno() == -1
    with pytest.raises(anyio.ClosedResourceError):
        await left.send(b"x")


async def test_cancelled_receive_loses_nothing() -> None:
    left, right = _pair()
    async with left, right:
        with anyio.move_on_after(0.02):
            await right.receive()
        await left.send(b"still here")
        assert await right.receive() == b"still here"


async def test_listener_turns_strangers_away() -> None:
    """As the kernel kind does with other boxes' CIDs."""
    with tempfile.TemporaryDirectory(prefix="vb") as directory:
        path = str(Path(directory) / "l")
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.listen(5)
        verdicts = iter([False, True])
        listener = Listener(sock, 1, admit=lambda _peer: next(verdicts))
        clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for client in clients:
            client.connect(path)
        async with await listener.accept(5) as stream:
            await stream.send(b"you")
            assert clients[0].recv(5) == b""
            assert clients[1].recv(5) == b"you"
        for client in clients:
            client.close()
        listener.close()


async def test_listener_outlasts_running_out_of_descriptors() -> None:
    left, right = socket.socketpair()

    class Exhausted:
        tries = 0

        def setblocking(self, _flag: bool) -> None: ...

        def fileno(self) -> int:
            return left.fileno()

        def accept(self) -> tuple[socket.socket, str]:
            self.tries += 1
            if self.tries < 3:
                raise OSError(errno.EMFILE, "too many")
            if self.tries == 3:
                return right, ""
            raise OSError(errno.EINVAL, "odd")

    listener = Listener(Exhausted(), 1)  # type: ignore[arg-type]
    async with await listener.accept(5) as stream:
        assert stream.fileno() == right.fileno()
    with pytest.raises(ProviderError, match="odd"):
        await listener.accept(5)
    left.close()
