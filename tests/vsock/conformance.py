"""What every vsock transport must do, as plain async functions on a `Pair`.

Run against the user-space device with a fake driver (no VM), and in real boxes with the user and the
kernel transport. The guest's half is `guest_peer`. Each case bounds itself by `BOUND_S`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import pytest

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.vsock import Stream, Transport

from . import guest_peer as peer
from .descriptors import descriptors

BOUND_S = 60.0
BULK = 20 << 20


@dataclass
class Pair:
    """A transport, and a guest in which `guest_peer` serves."""

    transport: Transport
    watched: list[int] = field(default_factory=list)
    """Processes whose descriptors must not grow: this one and, for the user kind, the device."""
    speed: float = 1.0
    """Divides bulk sizes: 1 for TCG and the fake driver, more where a guest is emulated twice."""

    async def dial(self, port: int) -> Stream:
        """A stream to the guest's service on `port`."""
        return await self.transport.connect(port, BOUND_S)

    @property
    def bulk(self) -> int:
        """Bytes for a bulk transfer."""
        return int(BULK / self.speed)


async def _rest(stream: Stream) -> bytes:
    """All that still comes; an abrupt end counts as an end."""
    parts = []
    try:
        while data := await stream.receive():
            parts.append(data)
    except anyio.BrokenResourceError:
        pass
    return b"".join(parts)


async def _send_for_ever(stream: Stream) -> None:
    while True:
        await stream.send(b"y" * 65536)


def _pattern_digest(total: int) -> str:
    digest = hashlib.sha256()
    for block in peer.pattern(total):
        digest.update(block)
    return digest.hexdigest()


async def echo(pair: Pair) -> None:
    """What is sent comes back, small and large, and the end comes back too."""
    async with await pair.dial(peer.ECHO) as stream:
        for size in (1, 43, 44, 4052, 4096, 65536, 100_000):
            data = os.urandom(size)
            await stream.send(data)
            got = b""
            while len(got) < size:
                got += await stream.receive()
            assert got == data
        await stream.send_eof()
        assert await stream.receive() == b""


async def refused_port(pair: Pair) -> None:
    """A port nobody listens on is refused, at once and as a refusal."""
    began = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        await pair.transport.connect(peer.NOBODY, 30)
    assert caught.value.cause == "refused"
    assert time.monotonic() - began < 10


async def many_at_once(pair: Pair) -> None:
    """64 connections at the same time, each with its own bytes."""

    async def one(number: int) -> None:
        async with await pair.dial(peer.ECHO) as stream:
            data = bytes([number]) * 3000
            await stream.send(data)
            await stream.send_eof()
            assert await _rest(stream) == data
            done.append(number)

    done: list[int] = []
    async with anyio.create_task_group() as tasks:
        for number in range(64):
            tasks.start_soon(one, number)
    assert sorted(done) == list(range(64))


async def bulk_to_guest(pair: Pair) -> None:
    """A large transfer into the guest arrives whole; its digest comes back after a half-close."""
    async with await pair.dial(peer.SINK) as stream:
        for block in peer.pattern(pair.bulk):
            await stream.send(block)
        await stream.send_eof()
        assert await _rest(stream) == b"%d %s" % (pair.bulk, _pattern_digest(pair.bulk).encode())


async def bulk_from_guest(pair: Pair) -> None:
    """A large transfer out of the guest arrives whole."""
    async with await pair.dial(peer.SOURCE) as stream:
        await stream.send(peer.SIZE.pack(pair.bulk))
        digest, count = hashlib.sha256(), 0
        while data := await stream.receive():
            digest.update(data)
            count += len(data)
        assert (count, digest.hexdigest()) == (pair.bulk, _pattern_digest(pair.bulk))


async def guest_half_closes(pair: Pair) -> None:
    """The guest may end its direction and go on receiving."""
    async with await pair.dial(peer.HALF) as stream:
        assert await _rest(stream) == b"hello"
        await stream.send(b"x" * 100_000)
        await stream.send_eof()
    deadline = time.monotonic() + BOUND_S
    counted = -1
    while counted < 0 and time.monotonic() < deadline:
        async with await pair.dial(peer.COUNT) as stream:
            counted = int(await _rest(stream))
    assert counted == 100_000


async def guest_closes_abruptly(pair: Pair) -> None:
    """A guest that closes without reading ends the host's stream: no hang, neither way."""
    async with await pair.dial(peer.ABORT) as stream:
        with pytest.raises(anyio.BrokenResourceError):
            await _send_for_ever(stream)
        await _rest(stream)


async def host_closes_abruptly(pair: Pair) -> None:
    """A host that closes with unread bytes in flight leaves the transport usable."""
    for _ in range(5):
        stream = await pair.dial(peer.SOURCE)
        await stream.send(peer.SIZE.pack(8 << 20))
        await stream.receive(100)
        await stream.aclose()
    await echo(pair)


async def slow_reader_bounded(pair: Pair) -> None:
    """A guest that reads nothing stops the sender after a bounded number of bytes, and no one else."""
    async with await pair.dial(peer.STALL) as stream:
        await stream.send(b"--")
        assert await stream.receive() == b"st"
        taken = 0
        with anyio.move_on_after(1.5):
            while taken < 64 << 20:
                await stream.send(b"z" * 16384)
                taken += 16384
        # The guest's window, the host socket's buffers and the device's window: far below this.
        assert taken < 8 << 20
        await echo(pair)
        async with await pair.dial(peer.STALL) as other:
            await other.send(b"go")
            assert await other.receive() == b"ok"
        await stream.send_eof()
        count = int((await _rest(stream)).split()[0])
        # `taken` misses what a cancelled send had delivered of its last block.
        assert taken <= count <= taken + 16384


async def guest_dials(pair: Pair) -> None:
    """A connection the guest opens to a port the host listens on, and one to a port it does not."""
    listener = pair.transport.listen()
    try:
        async with await pair.dial(peer.DIAL) as control:
            await control.send(peer.SIZE.pack(listener.port))
            async with await listener.accept(BOUND_S) as stream:
                got = b""
                while len(got) < len(b"from the guest"):
                    got += await stream.receive()
                assert got == b"from the guest"
                await stream.send(b"and back")
                await stream.send_eof()
                assert await _rest(stream) == b"and back"
    finally:
        listener.close()
    async with await pair.dial(peer.DIAL) as control:
        await control.send(peer.SIZE.pack(listener.port))
        assert await _rest(control) == b"refused"


async def forwarded(pair: Pair) -> None:
    """A port forwarded to a UNIX socket reaches what listens there."""
    path = pair.transport.box_dir / "target.sock"
    server = await anyio.create_unix_listener(path)
    port = pair.transport.forward(0, path)

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(await stream.receive() + b"!")
            await stream.send_eof()

    async with server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, answer)
        async with await pair.dial(peer.DIAL) as control:
            await control.send(peer.SIZE.pack(port))
            assert await _rest(control) == b"dialled"
        tasks.cancel_scope.cancel()


async def connect_timeout_named(pair: Pair) -> None:
    """A bound too short to meet is in the error."""
    with pytest.raises(LimitExceeded, match="0 s") as caught:
        await pair.transport.connect(peer.ECHO, 0)
    assert (caught.value.limit, caught.value.value, caught.value.unit) == ("time", 0, "s")


async def accept_timeout_named(pair: Pair) -> None:
    """So is the bound of a listener nobody dials."""
    listener = pair.transport.listen()
    try:
        with pytest.raises(LimitExceeded, match=r"0\.1 s"):
            await listener.accept(0.1)
    finally:
        listener.close()


async def no_descriptors_leak(pair: Pair) -> None:
    """Many short connections, some abrupt, leave no descriptor behind in any process."""

    def counts() -> list[Counter[str]]:
        return [descriptors(pid) for pid in pair.watched]

    def grown() -> bool:
        return any(not now <= then for now, then in zip(counts(), before, strict=True))

    async def some(number: int) -> None:
        for _ in range(number):
            async with await pair.dial(peer.ECHO) as stream:
                await stream.send(b"a")
                await stream.receive()
        stream = await pair.dial(peer.SOURCE)
        await stream.send(peer.SIZE.pack(1 << 20))
        await stream.aclose()

    await some(3)
    await anyio.sleep(0.3)
    before = counts()
    for _ in range(4):
        await some(int(25 / pair.speed) + 1)
    deadline = time.monotonic() + 15
    while grown() and time.monotonic() < deadline:
        await anyio.sleep(0.05)
    assert not grown(), f"{before} became {counts()}"


CASES: tuple[Callable[[Pair], Awaitable[None]], ...] = (
    echo,
    refused_port,
    many_at_once,
    bulk_to_guest,
    bulk_from_guest,
    guest_half_closes,
    guest_closes_abruptly,
    host_closes_abruptly,
    slow_reader_bounded,
    guest_dials,
    forwarded,
    connect_timeout_named,
    accept_timeout_named,
    no_descriptors_leak,
)


async def check(case: Callable[[Pair], Awaitable[None]], pair: Pair) -> None:
    """Run one case within `BOUND_S`."""
    with anyio.fail_after(BOUND_S * 2):
        await case(pair)
