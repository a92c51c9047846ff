"""Files of pages: what went in comes out, and whatever else lies under the name is told apart, cheaply."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.machines.templates import pages
from voidbox_lab.machines.templates.pages import MAGIC, MAX_SIZE, PAGE, Damaged, pack, unpack

HEAD = struct.calcsize("<8sQQ")
RUN = struct.calcsize("<QQ")
CHEAP = 16 << 20
"""Bytes that reading a hostile file may take: four chunks."""

stretches = st.lists(
    st.tuples(st.integers(0, 40 * PAGE), st.integers(1, 3 * PAGE), st.integers(0, 255)), max_size=12
)


@pytest.fixture
def here() -> Iterator[Path]:
    """A directory on whatever the machine's temporary files lie on."""
    with tempfile.TemporaryDirectory(prefix="vbt") as path:
        yield Path(path)


def sparse(path: Path, size: int, written: list[tuple[int, int, int]]) -> bytes:
    """Make a file of `size` bytes with only the stretches ``(offset, length, byte)`` written; its content."""
    content = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length, value in written:
            part = bytes([value]) * min(length, max(0, size - offset))
            file.seek(offset)
            file.write(part)
            content[offset : offset + len(part)] = part
    assert path.stat().st_size == size
    return bytes(content)


def hostile(path: Path, size: int, runs: list[tuple[int, int]], data: bytes, count: int | None = None) -> str:
    """Write a file of pages by hand, with a right digest; the digest."""
    number = len(runs) if count is None else count
    content = struct.pack("<8sQQ", MAGIC, size, number) + b"".join(struct.pack("<QQ", *r) for r in runs) + data
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@given(size=st.integers(1, 40 * PAGE), written=stretches)
def test_what_goes_in_comes_out(size: int, written: list[tuple[int, int, int]]) -> None:
    """Any size, any content; zeros written out are left out, and the copy is private."""
    with tempfile.TemporaryDirectory(prefix="vbt") as directory:
        source, packed, back = (Path(directory) / name for name in ("source", "packed", "back"))
        content = sparse(source, size, written)
        digest = pack(source, packed)
        unpack(packed, back, digest)
        assert back.read_bytes() == content
        assert back.stat().st_mode & 0o777 == 0o600
        assert hashlib.sha256(packed.read_bytes()).hexdigest() == digest
        used = sum(any(content[at : at + PAGE]) for at in range(0, size, PAGE))
        assert packed.stat().st_size <= HEAD + used * (PAGE + RUN)


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 5 << 20, (4 << 20) + 7])
@pytest.mark.parametrize("value", [0, 255])
def test_all_zero_and_all_full(here: Path, size: int, value: int) -> None:
    """Nothing but zeros is a head; nothing but data is one run, longer than a chunk too."""
    (here / "source").write_bytes(bytes([value]) * size)
    digest = pack(here / "source", here / "packed")
    assert (here / "packed").stat().st_size == HEAD + (RUN + size if value else 0)
    unpack(here / "packed", here / "back", digest)
    assert (here / "back").read_bytes() == bytes([value]) * size
    if not value:
        assert (here / "back").stat().st_blocks == 0


@given(size=st.integers(1, 40 * PAGE), written=stretches)
def test_holes_do_not_change_the_digest(size: int, written: list[tuple[int, int, int]]) -> None:
    """A copy that filled the holes with zeros packs to the very same bytes."""
    with tempfile.TemporaryDirectory(prefix="vbt") as directory:
        source, filled = Path(directory) / "source", Path(directory) / "filled"
        filled.write_bytes(sparse(source, size, written))
        assert pack(source, Path(directory) / "a") == pack(filled, Path(directory) / "b")


def test_blocks_smaller_than_a_page(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of 1 KiB blocks reports several stretches within one page, which is packed once."""
    content = sparse(here / "source", 3 * PAGE, [(0, 1024, 1), (2048, 1024, 2), (2 * PAGE, PAGE, 3)])
    whole = pack(here / "source", here / "whole")
    data = [(0, 1024), (2048, 3072), (2 * PAGE, 2 * PAGE + 1024), (2 * PAGE + 3072, 3 * PAGE)]
    monkeypatch.setattr(pages, "data_runs", lambda _fd: iter(data))
    digest = pack(here / "source", here / "packed")
    unpack(here / "packed", here / "back", digest)
    assert (here / "back").read_bytes() == content
    assert digest == whole


def test_nothing_is_overwritten(here: Path) -> None:
    """Both directions make new files only, and a link in the way is not followed."""
    (here / "source").write_bytes(b"x" * 5000)
    (here / "packed").symlink_to(here / "elsewhere")
    with pytest.raises(FileExistsError):
        pack(here / "source", here / "packed")
    digest = pack(here / "source", here / "good")
    (here / "back").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        unpack(here / "good", here / "back", digest)
    assert (here / "back").read_bytes() == b"precious"
    assert not (here / "elsewhere").exists()


@pytest.fixture
def packed(here: Path) -> tuple[Path, str]:
    """A file of pages with three runs, and its digest."""
    sparse(here / "source", 20 * PAGE + 100, [(0, PAGE, 1), (4 * PAGE, 2 * PAGE, 2), (20 * PAGE, 100, 3)])
    return here / "packed", pack(here / "source", here / "packed")


def refused(path: Path, digest: str) -> str:
    """Unpack `path`, which must be refused without much memory; the message."""
    target = path.with_name("target")
    target.unlink(missing_ok=True)
    tracemalloc.start()
    try:
        with pytest.raises(Damaged) as caught:
            unpack(path, target, digest)
        assert tracemalloc.get_traced_memory()[1] < CHEAP
    finally:
        tracemalloc.stop()
    assert caught.value.cause == "template-damaged"
    assert str(path) in caught.value.message
    return caught.value.message


def test_cut_short_anywhere(packed: tuple[Path, str]) -> None:
    """In the head, in the index, between and within runs."""
    path, digest = packed
    content = path.read_bytes()
    index = HEAD + 3 * RUN
    places = [*range(index + 2), index + PAGE - 1, index + PAGE, index + PAGE + 1, len(content) - 1]
    for place in places:
        path.write_bytes(content[:place])
        assert "cut short" in refused(path, digest), place


def test_a_flipped_byte_anywhere(packed: tuple[Path, str]) -> None:
    """Every byte of head and index, and samples of the data, in the lowest and the highest bit."""
    path, digest = packed
    content = path.read_bytes()
    index = HEAD + 3 * RUN
    for place in [*range(index), *range(index, len(content), 997), len(content) - 1]:
        for bit in (0x01, 0x80):
            broken = bytearray(content)
            broken[place] ^= bit
            path.write_bytes(broken)
            refused(path, digest)


@pytest.mark.parametrize("extra", [b"\0", b"x" * PAGE], ids=["one byte", "a page"])
def test_extra_bytes(packed: tuple[Path, str], extra: bytes) -> None:
    """Also when the digest covers them: the format has no room for more."""
    path, digest = packed
    content = path.read_bytes() + extra
    path.write_bytes(content)
    assert "digest" in refused(path, digest)
    assert refused(path, hashlib.sha256(content).hexdigest())


def test_another_digest(packed: tuple[Path, str]) -> None:
    """A whole file is not the right file."""
    path, digest = packed
    assert "digest" in refused(path, "0" * 64)
    assert "digest" in refused(path, digest.upper())


@pytest.mark.parametrize("content", [b"", b"x" * 23, b"x" * 10_000, b"VBPAGES2" + bytes(16)], ids=lambda c: c[:9])
def test_no_such_file(here: Path, content: bytes) -> None:
    """Anything else under the name; the digest may even be right."""
    (here / "file").write_bytes(content)
    refused(here / "file", hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("runs", "size"),
    [
        ([(0, PAGE), (0, PAGE)], 4 * PAGE),
        ([(0, 2 * PAGE), (PAGE, PAGE)], 4 * PAGE),
        ([(PAGE, PAGE), (0, PAGE)], 4 * PAGE),
        ([(0, 0)], 4 * PAGE),
        ([(4 * PAGE, PAGE)], 4 * PAGE),
        ([(3 * PAGE, 2 * PAGE)], 4 * PAGE),
        ([(2**64 - PAGE, PAGE)], 4 * PAGE),
        ([(2**63, 2**63)], 4 * PAGE),
        ([(0, 2**64 - 1)], 4 * PAGE),
        ([(PAGE, 2**64 - PAGE)], 4 * PAGE),
    ],
)
def test_an_index_that_lies(here: Path, runs: list[tuple[int, int]], size: int) -> None:
    """Overlapping, out of order, empty, out of range, and sums beyond 64 bits; with a right digest."""
    digest = hostile(here / "file", size, runs, b"x" * 8 * PAGE)
    assert "out of range" in refused(here / "file", digest)
    assert (here / "target").stat().st_size <= size


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (0, 0),
        (MAX_SIZE + 1, 0),
        (2**64 - 1, 1),
        (PAGE, 3),
        (PAGE, 2**64 - 1),
        (MAX_SIZE, MAX_SIZE // PAGE),
        (MAX_SIZE, 2**24),
    ],
)
def test_numbers_that_would_cost(here: Path, size: int, count: int) -> None:
    """No size and no count makes the reader take memory that the file itself has not."""
    digest = hostile(here / "file", size, [(0, PAGE)], b"x" * PAGE, count=count)
    refused(here / "file", digest)


def test_a_huge_run_costs_no_memory(here: Path) -> None:
    """A run of a terabyte in a file of a page: read in chunks, refused at the first that is not there."""
    digest = hostile(here / "file", MAX_SIZE, [(0, MAX_SIZE)], b"x" * PAGE)
    assert "cut short" in refused(here / "file", digest)


def test_an_empty_source(here: Path) -> None:
    """A saved machine has memory: this is a mistake of ours and said as one."""
    (here / "source").touch()
    with pytest.raises(ValueError, match="empty"):
        pack(here / "source", here / "packed")
    assert not (here / "packed").exists()


def test_a_write_in_pieces(packed: tuple[Path, str], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pwrite(2) may write less than it was given."""
    path, digest = packed
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: max(1, len(data) // 2)], at))
    unpack(path, here / "back", digest)
    assert (here / "back").read_bytes() == (here / "source").read_bytes()
