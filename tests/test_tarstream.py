"""Tar streams that are made to cost their reader, and honest ones that must not be refused with them."""

from __future__ import annotations

import io
import itertools
import tarfile
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest

from voidbox_lab.tarstream import MAX_HEADER, UnsafeMember, members

BLOCK = 512


def header(name: str = "x", kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    """One block."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header of `records`, as they are."""
    return header(kind=kind, size=len(records)) + records + bytes(-len(records) % BLOCK)


def record(keyword: str, value: str) -> bytes:
    """One record, with its own length in it."""
    rest = f" {keyword}={value}\n".encode()
    length = next(n for n in range(len(rest), len(rest) + 10) if n == len(rest) + len(str(n)))
    return str(length).encode() + rest


class Stream:
    """Blocks, perhaps without end, of which nobody should take more than a few MiB."""

    def __init__(self, blocks: Iterable[bytes], most: int = 8 << 20) -> None:
        self._blocks, self._left = iter(blocks), most

    def read(self, size: int) -> bytes:
        """As of a file."""
        self._left -= size
        assert self._left > 0, "read on and on"
        return b"".join(itertools.islice(self._blocks, size // BLOCK))


def old_gnu_sparse() -> Iterator[bytes]:
    """A sparse member whose map goes on for ever."""
    block = bytearray(header(kind=tarfile.GNUTYPE_SPARSE))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    yield bytes(block)
    more = bytearray(b"00000000001\0" * 42 + bytes(8))
    more[504] = 1
    yield from itertools.repeat(bytes(more))


def pax_sparse() -> Iterator[bytes]:
    """A sparse member (format 1.0) whose map, in its content, says that it goes on for ever."""
    said = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "x")
    data = pax(said) + header() + b"9" * 9 + b"\n" + b"1\n" * 251
    yield from (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    yield from itertools.repeat(b"1\n" * 256)


@pytest.mark.parametrize("blocks", [old_gnu_sparse, pax_sparse])
def test_maps_of_sparse_members_are_not_followed(blocks: object) -> None:
    """They are refused by their header; a map has no end but the stream's."""
    with pytest.raises(UnsafeMember, match="sparse"):
        list(members(Stream(blocks())))  # type: ignore[operator]


@pytest.mark.parametrize("key", ["GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.offset"])
def test_older_sparse_formats_too(key: str) -> None:
    """Their maps are in the header."""
    with pytest.raises(UnsafeMember, match="sparse"):
        list(members(io.BytesIO(pax(record(key, "0")) + header() + bytes(1024))))


def test_records_that_overlap() -> None:
    """64 KiB of them must not become a gigabyte of keywords."""
    data = pax((b"2 " * (MAX_HEADER // 2))[:-1] + b"=") + header() + bytes(1024)
    tracemalloc.start()
    try:
        with pytest.raises(tarfile.ReadError, match="pax header is damaged"):
            list(members(io.BytesIO(data)))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_global_headers_are_not_collected() -> None:
    """Each keyword of each is kept by tarfile for the rest of the archive."""
    blocks = (pax(record(f"comment{n}", "a" * 60_000), tarfile.XGLTYPE) + header(f"f{n}") for n in range(1000))
    data = b"".join(itertools.islice(blocks, 300)) + bytes(1024)
    tracemalloc.start()
    try:
        assert len([member.name for _, member in members(io.BytesIO(data))]) == 300
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        pax(record("mtime", "nan")),
        pax(record("mtime", "inf")),
        pax(record("mtime", "soon")),
        pax(record("size", "-1")),
        pax(record("size", "1" * 5000)),
        pax(record("uid", "-1")),
        pax(record("uid", "1e3")),
        pax(b"5 a=b\n"),
        pax(b"99 path=abc\n"),
        pax(b"12 path=abcd\n"),
        pax(b"0 path=abc\n"),
        pax(b"-1 path=abc\n"),
        pax(b"9 path\nab\n"),
        pax(b"path=abc\n"),
        pax(record("path", "a"))[:BLOCK],
        header(kind=tarfile.XHDTYPE, size=MAX_HEADER + 1),
        header(kind=tarfile.GNUTYPE_LONGNAME, size=MAX_HEADER + 1),
    ],
)
def test_damaged_headers_are_refused(data: bytes) -> None:
    """At once, not by whoever stumbles over what they left."""
    with pytest.raises(tarfile.TarError):
        list(members(io.BytesIO(data + header("after") + bytes(1024))))


def test_honest_headers_are_read() -> None:
    """Names of any length and encoding, large numbers, fractions of seconds, what is said for all that follow."""
    out = io.BytesIO()
    long = "/".join(["é" * 100] * 4)
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form, pax_headers={"comment": "a commit"}) as tar:
            for name in (long, "raw\udcff", "short"):
                info = tarfile.TarInfo(name)
                info.size, info.uid, info.mtime = 3, 12_345_678, 1.5
                info.pax_headers = {"SCHILY.xattr.user.x": "y" * 5000}
                tar.addfile(info, io.BytesIO(b"abc"))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info = tarfile.TarInfo("link")
                info.type, info.linkname = kind, long
                tar.addfile(info)
            tar.addfile(tarfile.TarInfo("last"))
        out.seek(0)
        found = []
        for tar, member in members(out):
            found.append(member.name)
            if member.isreg() and member.size:
                content = tar.extractfile(member)
                assert content
                assert content.read() == b"abc"
                assert member.uid == 12_345_678
            assert not member.islnk() or member.linkname == long
            assert len(tar.members) <= 1  # type: ignore[attr-defined]
        assert found == [long, "raw\udcff", "short", "link", "link", "last"]
    data = pax(record("mtime", "5.5"), tarfile.XGLTYPE) + header("a") + pax(record("size", "600")) + header("b")
    data += bytes(1024) + header("c") + bytes(1024)
    assert [(m.name, m.mtime, m.size) for _, m in members(io.BytesIO(data))] == [
        ("a", 5.5, 0),
        ("b", 5.5, 600),
        ("c", 5.5, 0),
    ]
