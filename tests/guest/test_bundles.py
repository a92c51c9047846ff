"""Whole trees in and out through the real agent, on this host."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.guest.harness import guest_box
from voidbox_lab.box import Box
from voidbox_lab.box.bundles import LeftOut, encoded
from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.resources import data_dir
from voidbox_lab.wire import bundle

pytestmark = pytest.mark.anyio
BIG = os.urandom(700_001)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """A box whose guest is a process here."""
    async with guest_box(tmp_path) as made:
        yield made


async def packed(
    box: Box, path: Path, *, max_files: int = 5000, max_bytes: int = 1 << 30, **options: bool
) -> tuple[dict[str, tuple[str, bytes, bool]], LeftOut]:
    """Path to kind, data and executable bit; and what was left out."""
    left_out, found = LeftOut(), dict[str, tuple[str, bytes, bool]]()
    async for item in box.pack(str(path), max_files=max_files, max_bytes=max_bytes, left_out=left_out, **options):
        before = found.get(item.path, ("", b"", False))[1]
        found[item.path] = (item.kind, before + item.data, item.executable)
    return found, left_out


async def test_a_tree_comes_back_unchanged(box: Box, tmp_path: Path) -> None:
    """Empty and large files, deep directories, executable bits; many files in one request."""
    files = [("a", b"", False), ("d/e/big", BIG, False), ("d/run", b"#!", True)]
    files += [(f"many/{n:04}", bytes(n), False) for n in range(1500)]
    place = tmp_path / "x/y"
    await box.unpack(str(place), encoded(files))
    assert (place / "d/e/big").read_bytes() == BIG
    assert (place / "d/run").stat().st_mode & 0o777 == 0o755
    found, left_out = await packed(box, place)
    assert left_out.count == 0
    assert {p: (data, x) for p, (kind, data, x) in found.items() if kind == "file"} == {
        path: (data, x) for path, data, x in files
    }
    assert [p for p, (kind, _, _) in found.items() if kind == "dir"] == ["d", "d/e", "many"]


async def test_what_is_there_is_not_replaced(box: Box, tmp_path: Path) -> None:
    """A file that exists, a link in a directory's place: typed errors, and nothing is written through a link."""
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/d").symlink_to(tmp_path / "out")
    with pytest.raises(UserError) as caught:
        await box.unpack(f"{tmp_path}/in", encoded([("d/x", b"1", False)]))
    assert caught.value.cause == "exists"
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(UserError):
        await box.unpack(f"{tmp_path}/in", iter([bundle.head(bundle.FILE, 0o644, b"../x")]))
    with pytest.raises(UserError):
        await box.unpack(f"{tmp_path}/in", iter([bundle.head(bundle.FILE, 0o644, b"half", 9) + b"x"]))
    await box.ping()


async def test_no_link_is_followed_and_nothing_special_read(box: Box, tmp_path: Path) -> None:
    """Links out, devices, FIFOs, sockets and names without a form are left out, and said."""
    place = tmp_path / "out"
    (place / "sub").mkdir(parents=True)
    (place / "sub/ok").write_bytes(b"ok")
    (place / "secret").symlink_to("/etc/passwd")
    (place / "dir").symlink_to("/etc")
    (place / "sub/near").symlink_to("ok")
    (place / "sub/away").symlink_to("../../x")
    os.mkfifo(place / "fifo")
    (place / os.fsdecode(b"\xff")).write_bytes(b"no text")
    (place / "a\nb").write_bytes(b"two lines")
    found, left_out = await packed(box, place)
    assert {p for p, (kind, _, _) in found.items() if kind == "file"} == {"sub/ok"}
    assert left_out.count == 7
    assert {"link", "special", "path"} <= left_out.whys()
    assert "fifo (no regular file)" in str(left_out)
    found, left_out = await packed(box, place, links=True)
    assert found["sub/near"] == ("link", b"ok", True)
    assert "sub/away" not in found


async def test_untouched_files_come_without_their_bytes(box: Box, tmp_path: Path) -> None:
    """Of a writable folder only what changed travels back, by times that the agent cannot set."""
    place = tmp_path / "rw"
    await box.unpack(
        str(place), encoded([(n, b"12345", False) for n in ("same", "new", "touched", "x")]), mount="rw"
    )
    (place / "new").write_bytes(b"54321")
    (place / "x").chmod(0o755)
    info = (place / "touched").stat()
    (place / "touched").write_bytes(b"abcde")
    os.utime(place / "touched", ns=(info.st_atime_ns, info.st_mtime_ns))
    (place / "more").write_bytes(b"more")
    found, _ = await packed(box, place, changed=True)
    assert {p: kind for p, (kind, _, _) in found.items()} == {
        "same": "same", "new": "file", "touched": "file", "x": "file", "more": "file",
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        await box.unpack(str(place), encoded([("x", b"", False)]), mount="rw")
    assert caught.value.cause == "exists"


async def test_no_disk_within_is_packed(tmp_path: Path) -> None:
    """A volume or another folder of the host has a way back of its own."""
    place = tmp_path / "out"
    (place / "disk").mkdir(parents=True)
    (place / "disk/theirs").touch()
    (place / "disks").mkdir()
    patch = (
        f"from voidbox_guest.places import Places\nPlaces.disks = lambda self: [({str(place / 'disk')!r}, True)]"
    )
    async with guest_box(tmp_path, patch) as box:
        found, left_out = await packed(box, place)
    assert set(found) == {"disks"}
    assert left_out.shown == (("disk", "special"),)


async def test_a_walk_that_is_left_holds_nothing_open(tmp_path: Path) -> None:
    """Before its first piece, or in the midst of it: PID 1 lives as long as its box."""
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_bytes(bytes(200_000))
    program = f"""
import os, sys
sys.path[:0] = sys.argv[1:]
from voidbox_guest.bundles import _Walk
held = len(os.listdir("/proc/self/fd"))
for pieces in range(7):
    for entries in (1, 9):
        tree = _Walk({str(tmp_path)!r}, entries, 1 << 20, {{}}, False, set()).tree()
        try:
            for _ in range(pieces):
                next(tree, None)
        except Exception as error:
            assert "entries" in str(error), error
        tree.close()
        assert len(os.listdir("/proc/self/fd")) == held, (pieces, entries)
"""
    argv = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        program,
        str(data_dir("guest")),
        str(Path(bundle.__file__).parents[1]),
    ]
    await anyio.run_process(argv, stderr=None)


async def test_bounds(box: Box, tmp_path: Path) -> None:
    """More files or bytes than asked for are an error, before they are read."""
    place = tmp_path / "out"
    place.mkdir()
    for n in range(20):
        (place / str(n)).touch()
    with pytest.raises(LimitExceeded) as caught:
        await packed(box, place, max_files=19)
    assert caught.value.limit == "files"
    with (place / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LimitExceeded) as caught:
        await packed(box, place, max_bytes=1 << 20)
    assert caught.value.limit == "bytes"
    await box.ping()
