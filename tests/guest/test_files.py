"""Files in and out through the real agent, on this host."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.guest.harness import guest_box
from voidbox_lab.box import Box
from voidbox_lab.errors import LimitExceeded, UserError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """A box whose guest is a process here."""
    async with guest_box(tmp_path) as made:
        yield made


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_000])
async def test_bytes_come_back_unchanged(box: Box, tmp_path: Path, size: int) -> None:
    """Empty, odd, frame-sized and many-window files, both ways, from memory and from disk."""
    data = os.urandom(size)
    assert await box.put(data, f"{tmp_path}/d/e/x") == size
    assert await box.get(f"{tmp_path}/d/e/x") == data
    assert await box.get_file(f"{tmp_path}/d/e/x", tmp_path / "back") == size
    assert (tmp_path / "back").read_bytes() == data
    assert await box.put(tmp_path / "back", f"{tmp_path}/again", mode=0o755) == size
    info = await box.stat(f"{tmp_path}/again")
    assert (info.type, info.size, info.mode) == ("file", size, 0o755)


async def test_a_put_is_whole_or_absent(box: Box, tmp_path: Path) -> None:
    """A cancelled put leaves the old file and no temporary one."""
    (tmp_path / "x").write_bytes(b"old")
    call = box._connection.open("put", path=f"{tmp_path}/x", mode=0o600, user="agent", parents=False)
    await call.send(0, b"half of the new")
    await box.ping()
    assert (tmp_path / "x").read_bytes() == b"old"
    call.abandon()
    await box.ping()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lib", "x"]


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("/no/such/file", "not-found"),
        ("/etc", "is-a-directory"),
        ("/dev/zero", "not-a-regular-file"),
        ("x", "bad-request"),
    ],
)
async def test_get_of_what_is_no_file_is_typed(box: Box, path: str, cause: str) -> None:
    """Devices, directories, nothing."""
    with pytest.raises(UserError) as caught:
        await box.get(path)
    assert caught.value.cause == cause


async def test_a_fifo_does_not_hold_the_agent(box: Box, tmp_path: Path) -> None:
    """Opening one for reading waits for a writer, unless one asks not to."""
    os.mkfifo(tmp_path / "fifo")
    with anyio.fail_after(5), pytest.raises(UserError) as caught:
        await box.get(f"{tmp_path}/fifo")
    assert caught.value.cause == "not-a-regular-file"


async def test_put_where_it_cannot_go_is_typed(box: Box, tmp_path: Path) -> None:
    """No parent, a directory in its place, a file as parent; a source that is not there."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    for path, cause in (("none/x", "not-found"), ("dir", "is-a-directory"), ("file/x", "not-a-directory")):
        with pytest.raises(UserError) as caught:
            await box.put(b"x" * 500_000, f"{tmp_path}/{path}", parents=False)
        assert caught.value.cause == cause
    with pytest.raises(UserError, match="cannot be read"):
        await box.put(tmp_path / "absent", f"{tmp_path}/x")


async def test_get_is_bounded(box: Box, tmp_path: Path) -> None:
    """A file larger than asked for is an error, and the box is fine after it."""
    (tmp_path / "big").write_bytes(bytes(1_000_000))
    with pytest.raises(LimitExceeded) as caught:
        await box.get(f"{tmp_path}/big", max_bytes=999_999)
    assert caught.value.limit == "file"
    with pytest.raises(LimitExceeded):
        await box.get_file(f"{tmp_path}/big", tmp_path / "out", max_bytes=10)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    await box.ping()


async def test_directories(box: Box, tmp_path: Path) -> None:
    """mkdir, list, remove; sorted, recursive, without following links."""
    root = f"{tmp_path}/r"
    await box.mkdir(f"{root}/b/c")
    await box.put(b"12", f"{root}/a")
    (tmp_path / "r" / "up").symlink_to("..")
    (tmp_path / "r" / "b" / os.fsdecode(b"\xff\n")).touch()
    flat = await box.list(root)
    assert [(e.name, e.type, e.size) for e in flat.entries if e.type == "file"] == [("a", "file", 2)]
    assert [e.name for e in flat.entries] == ["a", "b", "up"]
    deep = await box.list(root, recursive=True)
    assert [e.name for e in deep.entries] == ["a", "b", "b/c", "b/\\xff\n", "up"]
    with pytest.raises(UserError) as caught:
        await box.remove(root)
    assert caught.value.cause == "not-empty"
    await box.remove(root, recursive=True)
    assert not (tmp_path / "r").exists()
    assert (tmp_path / "lib").exists(), "a link was followed"
    with pytest.raises(UserError):
        await box.mkdir(str(tmp_path), parents=False)


async def test_a_large_directory_is_cut(box: Box, tmp_path: Path) -> None:
    """A listing fits its frame, and says that it is not all."""
    (tmp_path / "many").mkdir()
    for number in range(2500):
        (tmp_path / "many" / f"{number:04}{'x' * 60}").touch()
    listing = await box.list(f"{tmp_path}/many")
    assert listing.truncated
    assert 500 < len(listing.entries) < 2500
