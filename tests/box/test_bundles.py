"""Trees that a guest sends, against a guest that lies: nothing leads out, all is bounded, errors are typed."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guest.harness import FACTS, connected
from voidbox_lab.box import Box
from voidbox_lab.box.bundles import LeftOut, Packed
from voidbox_lab.errors import LimitExceeded, ProviderError, VoidboxError
from voidbox_lab.vsock import Stream
from voidbox_lab.wire import bundle
from voidbox_lab.wire import frames as f
from voidbox_lab.wire.bundle import DIRECTORY, FILE, LINK, head
from voidbox_lab.wire.jsonlite import dumps

END: dict[str, Any] = {"entries": 1, "left_out": 0, "shown": []}


@asynccontextmanager
async def sending(data: bytes, end: dict[str, Any]) -> AsyncIterator[Box]:
    """A box whose guest answers the first request with these bytes and this reply."""
    ours, theirs = socket.socketpair()
    guest = Stream(theirs)

    async def answer() -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await guest.receive()
            for start in range(0, len(data), f.MAX_DATA):
                await guest.send(f.encode(f.DATA, 1, data[start : start + f.MAX_DATA], 0))
            await guest.send(f.encode(f.END, 1, b"", 0))
            await guest.send(f.encode(f.REPLY, 1, dumps({"ok": end})))
            await anyio.sleep(30)

    async def close() -> None:
        return None

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            async with connected(ours) as connection:
                yield Box(connection, FACTS, close)
            tasks.cancel_scope.cancel()
    guest.close()


async def received(
    data: bytes, end: dict[str, Any] = END, *, max_files: int = 10, max_bytes: int = 1000
) -> tuple[list[Packed], LeftOut]:
    """What comes of such a bundle."""
    left_out, found = LeftOut(), list[Packed]()
    trouble: VoidboxError | None = None
    async with sending(data, end) as box:
        # Not through the task group, which would wrap it.
        try:
            stream = box.pack("/x", max_files=max_files, max_bytes=max_bytes, left_out=left_out, links=True)
            found = [item async for item in stream]
        except VoidboxError as error:
            trouble = error
    if trouble is not None:
        raise trouble
    return found, left_out


def file(path: bytes, data: bytes = b"x") -> bytes:
    """A file's entry."""
    return head(FILE, 0o644, path, len(data)) + data


@pytest.mark.anyio
@pytest.mark.parametrize(
    "data",
    [
        *(file(path) for path in (b"../x", b"/etc/x", b"a/../../x", b"a//b", b"./x", b"a\0b", b"", b"..", b"a/")),
        file(b"n" * 256), file(b"x/" * 500 + b"x"), file(b"a") + file(b"a"),
        head(DIRECTORY, 0o755, b"d") + head(DIRECTORY, 0o755, b"d"), head(DIRECTORY, 0o755, b"d") + file(b"d"),
        head(LINK, 0o777, b"l", 4) + b"/etc", head(LINK, 0o777, b"l", 2) + b"..", head(LINK, 0o777, b"l"),
        head(LINK, 0o777, b"l", 5000), head(9, 0, b"k"), head(FILE, 0o4755, b"s"), head(FILE, 0, b"f", 1 << 41),
        head(DIRECTORY, 0o755, b"d", 3) + b"abc", file(b"cut")[:-1], file(b"cut")[:5],
    ],
)  # fmt: skip
async def test_what_is_no_tree(data: bytes) -> None:
    """The guest broke the protocol, and nothing of that entry was given out."""
    with pytest.raises(ProviderError) as caught:
        await received(data)
    assert caught.value.cause == "protocol"


@pytest.mark.anyio
async def test_bounds_hold_before_the_bytes() -> None:
    """Sizes are added up as they are announced."""
    with pytest.raises(LimitExceeded):
        await received(head(FILE, 0o644, b"huge", 1001) + b"x")
    with pytest.raises(LimitExceeded):
        await received(file(b"a", bytes(600)) + head(FILE, 0o644, b"b", 600) + b"x")
    with pytest.raises(LimitExceeded):
        await received(b"".join(file(b"%d" % n) for n in range(11)))
    assert len((await received(b"".join(file(b"%d" % n) for n in range(10))))[0]) == 10


@pytest.mark.anyio
@pytest.mark.parametrize("rejected", [head(FILE, 0o644, b"\xff"), head(DIRECTORY, 0o755, b"none/d")])
async def test_what_is_let_go_by_is_counted(rejected: bytes) -> None:
    """A guest that sends what cannot be kept comes to an end as well."""
    assert (await received(rejected * 10))[1].count == 10
    with pytest.raises(LimitExceeded):
        await received(rejected * 11)


@pytest.mark.anyio
async def test_a_link_to_no_text_is_let_go_by() -> None:
    """Nobody could tell where it leads, nor write it down."""
    found, left_out = await received(
        head(LINK, 0o777, b"l", 1) + b"\xff" + head(LINK, 0o777, b"m", 2) + b"\xc3\xa9"
    )
    assert [(item.path, item.data) for item in found] == [("m", b"\xc3\xa9")]
    assert left_out.shown == (("l", "link"),)


@pytest.mark.anyio
async def test_names_that_cannot_be_kept_are_let_go_by() -> None:
    """Not UTF-8, control characters, below what is no directory: said, and the rest comes."""
    data = file(b"\xff") + file(b"a\nb") + file(b"a\\b") + file(b"none/x") + file(b"ok") + file(b"ok/x")
    found, left_out = await received(data, {**END, "left_out": 2, "shown": [["\x1b[31mfifo", "special"]]})
    assert [item.path for item in found] == ["ok"]
    assert left_out.count == 7
    assert "\x1b" not in str(left_out)
    assert "fifo" in str(left_out)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "end",
    [
        {}, {**END, "left_out": -1}, {**END, "left_out": True}, {**END, "left_out": 1 << 60}, {**END, "shown": 3},
        {**END, "shown": [3]}, {**END, "shown": [["a", "b", "c"]]}, {**END, "shown": [[1, 2]]},
    ],
)  # fmt: skip
async def test_an_end_that_is_none(end: dict[str, Any]) -> None:
    """As malformed as an entry."""
    with pytest.raises(ProviderError):
        await received(file(b"a"), end)


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=20))
def test_any_bytes_are_a_tree_or_an_error(data: bytes, cuts: list[int]) -> None:
    """However they are cut; and what comes of them does not depend on that."""

    def read(pieces: list[bytes]) -> list[tuple[int, bytes, bytes]] | None:
        decoder, found = bundle.Decoder(), dict[bytes, list[Any]]()
        try:
            for piece in pieces:
                for entry, part, _ in decoder.feed(piece):
                    assert bundle.is_path(entry.path)
                    found.setdefault(entry.path, [entry.kind, b""])[1] += part
        except bundle.BundleError:
            return None
        return [(kind, path, part) for path, (kind, part) in found.items()]

    pieces, rest = [], data
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    assert read([*pieces, rest]) == read([data])


@pytest.mark.anyio
@pytest.mark.parametrize("data", [b"", b"\x02", bytes(100_000), b"\x02\x00\x00\x00\x01" + b"\xff" * 60])
async def test_rubbish_is_typed(data: bytes) -> None:
    """Whatever it is."""
    with suppress(VoidboxError):
        await received(data)
