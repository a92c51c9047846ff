"""The host's side against guests that lie: bounded memory, bounded time, typed errors, never a crash."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guest.harness import FACTS, connected
from voidbox_lab.box import Box
from voidbox_lab.box.connection import Connection, shake_hands
from voidbox_lab.errors import BoxLost, LimitExceeded, ProviderError, VoidboxError
from voidbox_lab.vsock import Stream
from voidbox_lab.wire import frames as f
from voidbox_lab.wire.handshake import GuestSide
from voidbox_lab.wire.jsonlite import dumps

pytestmark = pytest.mark.anyio
SECRET = bytes(32)


@asynccontextmanager
async def against(answer: Callable[[Stream], Any]) -> AsyncIterator[tuple[Box, Connection]]:
    """A box whose guest is `answer(stream)`."""
    ours, theirs = socket.socketpair()
    guest = Stream(theirs)

    async def close() -> None:
        return None

    async def run() -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await answer(guest)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            async with connected(ours) as connection:
                yield Box(connection, FACTS, close), connection
            tasks.cancel_scope.cancel()
    guest.close()


def says(*frames: bytes) -> Callable[[Stream], Any]:
    """A guest that waits for the first request and then sends `frames`."""

    async def answer(stream: Stream) -> None:
        await stream.receive()
        for frame in frames:
            await stream.send(frame)
        await anyio.sleep(30)

    return answer


STARTED = f.encode(f.EVENT, 1, dumps({"started": 5}))
OK = f.encode(f.REPLY, 1, dumps({"ok": {"code": 0, "duration_s": 0.1}}))


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"\xff" * 64], "bad-version"),
        ([struct.pack("!BBHII", 1, f.DATA, 1, 1, 1 << 31)], "bad-length"),
        ([f.encode(f.REPLY, 9, b"{}")], "unexpected"),
        ([f.encode(f.REQUEST, 1, b"{}")], "unexpected"),
        ([f.encode(f.HELLO, 0, bytes(34))], "unexpected"),
        ([f.encode(f.DATA, 1, bytes(f.MAX_DATA), 1)] * 5, "credit-overrun"),
        ([f.encode_credit(1, 0, 1)], "credit-overflow"),
        ([f.encode(f.END, 1, b"", 1), f.encode(f.DATA, 1, b"x", 1)], "data-after-end"),
        ([OK, OK], "unexpected"),
    ],
)
async def test_a_broken_protocol_ends_the_box_with_the_reason(frames: list[bytes], code: str) -> None:
    """Every pending call learns why; the code is in the message."""
    async with against(says(STARTED, *frames)) as (box, connection):
        failed: list[VoidboxError] = []

        async def wait() -> None:
            try:
                process = await box.start_exec(["x"], stdin=True)
                await anyio.sleep(0.1)
                await process.stdout.receive()
                await box.ping()
            except VoidboxError as error:
                failed.append(error)
            except anyio.EndOfStream:
                with pytest.raises(VoidboxError) as caught:
                    await box.ping()
                failed.append(caught.value)

        await wait()
        await connection.ended.wait()
        with pytest.raises(BoxLost) as caught:
            await box.ping()
        assert code in caught.value.message
        assert failed


@pytest.mark.parametrize(
    "payload", [b"{}", b"[]", b"{" * 100_000, b'{"ok":1}', b'{"error":"x"}', b'{"a":[' * 40_000, b"\xff\xff"]
)
async def test_a_reply_that_is_none_is_typed(payload: bytes) -> None:
    """Not JSON, too deep, not a reply."""
    async with against(says(f.encode(f.REPLY, 1, payload))) as (box, _):
        with pytest.raises(ProviderError) as caught:
            await box.ping()
        assert caught.value.cause == "protocol"


@pytest.mark.parametrize(
    "ok",
    [
        {},
        {"code": "0"},
        {"code": 0, "signal": 9},
        {"code": 999},
        {"code": 0, "duration_s": -1},
        {"code": 0, "oom": "yes"},
    ],
)
async def test_an_exit_status_that_is_none_is_typed(ok: dict[str, Any]) -> None:
    """Strict: no string passes for a number, no process ends twice."""
    async with against(says(STARTED, f.encode(f.REPLY, 1, dumps({"ok": ok})))) as (box, _):
        process = await box.start_exec(["x"])
        with pytest.raises(ProviderError) as caught:
            await process.wait()
        assert caught.value.cause == "protocol"


_DENIAL = {"rule": "write", "subject": "/x", "message": "No.", "program": "sh", "count": 1}


@pytest.mark.parametrize(
    "fields",
    [
        *(None, [], {}),
        *({**_DENIAL, k: v} for k, v in (("rule", 1), ("count", 0), ("count", "1"), ("more", 1))),
        *({**_DENIAL, k: "x" * n} for k, n in (("rule", 101), ("subject", 1001), ("message", 1001))),
    ],
)
async def test_a_denial_that_is_none_is_typed(fields: object) -> None:
    """As an exit status: strict, bounded."""
    async with against(says(STARTED, f.encode(f.EVENT, 1, dumps({"denied": fields})))) as (box, _):
        process = await box.start_exec(["x"])
        with pytest.raises(ProviderError) as caught:
            await process.wait()
        assert caught.value.cause == "protocol"


async def test_denials_are_bounded_and_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the start and after the leader's end, with counts beyond reason; those beyond what is told one by one
    are added up by rule, and by so many rules."""
    monkeypatch.setattr("voidbox_lab.box.denials.MAX_DENIED", 3)
    monkeypatch.setattr("voidbox_lab.box.denials.MAX_RULES", 3)
    odd = {**_DENIAL, "count": 1 << 60}
    others = [{**_DENIAL, "rule": rule, "count": 2} for rule in ("a", "b", "c", "d", "a", "write")]
    first, *events = [
        f.encode(f.EVENT, 1, dumps({"denied": d})) for d in (_DENIAL, odd, _DENIAL, *[_DENIAL] * 8, *others, odd)
    ]
    exited = f.encode(f.EVENT, 1, dumps({"exited": {"code": 0}}))
    async with against(says(first, STARTED, *events[:6], exited, *events[6:], OK)) as (box, _):
        done = await box.run(["x"])
        assert [(d.rule, d.subject, d.count) for d in done.denied] == [
            *(("write", "/x", 1), ("write", "/x", 1 << 40), ("write", "/x", 1)),
            *(("write", "…", 1 << 40), ("a", "…", 4), ("b", "…", 2), ("…", "…", 4)),
        ]
        assert done.exit_code == 0


async def test_error_text_is_cleaned_and_cut() -> None:
    """A guest's message reaches a notebook: no control codes, no novels."""
    error = {"code": "not-found", "message": "\x1b[31mred\r\n\u202e" + "x" * 10_000}
    async with against(says(f.encode(f.REPLY, 1, dumps({"error": error})))) as (box, _):
        with pytest.raises(VoidboxError) as caught:
            await box.ping()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600


async def test_a_flood_of_events_is_bounded() -> None:
    """Only the latest are kept, unparsed."""

    async def flood(stream: Stream) -> None:
        await stream.receive()
        event = f.encode(f.EVENT, 1, dumps({"junk": "x" * 15_000}))
        for _ in range(3000):
            await stream.send(event)
        await stream.send(OK)
        await anyio.sleep(30)

    async with against(flood) as (_, connection):
        call = connection.open("exec")
        await call.result()
        assert sum(map(len, call._events)) <= 64 * f.MAX_EVENT


async def test_an_endless_stream_is_bounded_by_its_reader() -> None:
    """A guest without scruples sends until its credit is used up, and then may not."""

    async def endless(stream: Stream) -> None:
        await stream.receive()
        for _ in range(f.WINDOW // f.MAX_DATA):
            await stream.send(f.encode(f.DATA, 1, bytes(f.MAX_DATA)))
        while True:  # half a window for each half read, as an honest endless file would
            await stream.receive()
            for _ in range(f.WINDOW // f.MAX_DATA // 2):
                await stream.send(f.encode(f.DATA, 1, bytes(f.MAX_DATA)))

    async with against(endless) as (box, _):
        with pytest.raises(LimitExceeded) as caught:
            await box.get("/endless", max_bytes=3_000_000)
        assert caught.value.limit == "file"


async def test_a_silent_guest_costs_its_bound() -> None:
    """Every wait has an end, and says which."""
    async with against(says()) as (box, connection):
        with pytest.raises(LimitExceeded, match=r"0\.2 s") as caught:
            await box.ping(0.2)
        assert caught.value.limit == "time"
        assert connection.open_calls == 1  # until the guest answers, or is gone


async def test_a_guest_that_reads_nothing_cannot_fill_our_memory() -> None:
    """A put waits for credit; nothing piles up."""

    async def deaf(stream: Stream) -> None:
        await anyio.sleep(30)

    async with against(deaf) as (box, connection):
        with anyio.move_on_after(0.5):
            await box.put(bytes(50_000_000), "/x")
        assert connection._queued <= f.WINDOW + 4096


async def test_malformed_telemetry_and_listings_are_typed() -> None:
    """The models check what a guest claims."""
    async with against(says(f.encode(f.EVENT, 1, dumps({"cpu": "hot"})))) as (box, _):
        with pytest.raises(ProviderError):
            async for _sample in box.telemetry():
                pass
    async with against(says(f.encode(f.REPLY, 1, dumps({"ok": {"entries": [{"name": "x"}]}})))) as (box, _):
        with pytest.raises(ProviderError):
            await box.list("/")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=6))
def test_any_bytes_from_a_guest_end_in_a_typed_error(parts: list[bytes]) -> None:
    """Whatever comes, a call ends, in time, with one of ours."""

    async def main() -> None:
        async def answer(stream: Stream) -> None:
            await stream.receive()
            for part in parts:
                await stream.send(part)
            await stream.aclose()

        async with against(answer) as (box, _):
            with pytest.raises(VoidboxError):
                await box.run(["x"], stdin=b"y")

    anyio.run(main)


@pytest.mark.parametrize("secret", [SECRET, bytes([1]) * 32])
async def test_handshake_over_a_stream(secret: bytes) -> None:
    """The right secret passes, another is refused with a REJECT the guest can read."""
    ours, theirs = socket.socketpair()
    host, guest = Stream(ours), Stream(theirs)
    heard: list[f.Frame] = []

    async def dial() -> None:
        side, decoder = GuestSide(secret), f.Decoder()
        await guest.send(side.hello())
        while not side.done:
            for frame in decoder.feed(await guest.receive()):
                heard.append(frame)
                if frame.kind == f.REJECT:
                    return
                await guest.send(side.receive(frame))

    async with host, guest, anyio.create_task_group() as tasks:
        tasks.start_soon(dial)
        if secret == SECRET:
            await shake_hands(host, SECRET)
        else:
            with pytest.raises(ProviderError) as caught:
                await shake_hands(host, SECRET)
            assert caught.value.cause == "handshake"
    assert heard[-1].kind == (f.WELCOME if secret == SECRET else f.REJECT)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, f.encode(f.REQUEST, 1, b"{}"), f.encode(f.PROOF, 0, bytes(32))]
)
async def test_a_bad_handshake_is_typed(data: bytes) -> None:
    """Garbage, silence, a request before its time."""
    ours, theirs = socket.socketpair()
    async with Stream(ours) as host, Stream(theirs) as guest:
        if data:
            await guest.send(data)
            with pytest.raises(ProviderError):
                await shake_hands(host, SECRET, timeout_s=5)
        else:
            with pytest.raises(LimitExceeded):
                await shake_hands(host, SECRET, timeout_s=0.1)
