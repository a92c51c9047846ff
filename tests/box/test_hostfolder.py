"""Folders of the host, in and back, against a guest that lies and a host that moves: no VM needed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.guest.harness import guest_box
from voidbox_lab.box.bundles import Packed
from voidbox_lab.box.folders import bring_back, mounted
from voidbox_lab.box.hostfolder import MAX_ENTRIES, Contents, Found, HostFolder
from voidbox_lab.box.writeback import Staging
from voidbox_lab.errors import CommandFailed, LimitExceeded, ProviderError, UserError
from voidbox_lab.spec import Policy
from voidbox_lab.spec.events import Mounted
from voidbox_lab.spec.hostmount import HostMount
from voidbox_lab.wire import bundle

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a bit of everything, and secrets beside it."""
    root = tmp_path / "folder"
    (root / "sub/deep").mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "sub/run.sh").write_text("#!/bin/sh")
    (root / "sub/run.sh").chmod(0o750)
    (root / "sub/near").symlink_to("run.sh")
    (root / "sub/deep/up").symlink_to("../../a.txt")
    (root / "away").symlink_to("/etc/passwd")
    (root / "sub/out").symlink_to("../../secret")
    os.mkfifo(root / "fifo")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("key")
    return root


def there(path: Path, kind: Any = "file", data: bytes = b"", *, x: bool = False) -> Packed:
    """An entry as a guest sends it."""
    return Packed(kind, str(path), x, data, True)


def written(folder: Path, *items: Packed, first: Callable[[], None] = lambda: None) -> Staging:
    """`folder` after a box had exactly `items` there; `first` happens on the host before they are put in place."""
    with HostFolder(str(folder)) as opened:
        staging = Staging(opened, opened.contents())
        try:
            for item in items:
                staging.take(item)
            first()
            staging.apply("aside")
            return staging
        finally:
            staging.close()


def same(folder: Path) -> list[Packed]:
    """What a box has that changed nothing."""
    with HostFolder(str(folder)) as opened:
        entries = opened.contents().entries
    return [
        Packed("same" if f.kind == "file" else f.kind, path, False, f.target.encode(), True)
        for path, f in entries.items()
    ]


def without(items: Sequence[Packed], *paths: str) -> list[Packed]:
    """`items` but these."""
    return [item for item in items if item.path not in paths]


def held_open() -> int:
    """Descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def tree(root: Path) -> set[str]:
    """All paths below `root`."""
    return {str(p.relative_to(root)) for p in root.rglob("*")}


def test_what_a_box_is_given(folder: Path) -> None:
    """Files, directories, links that stay inside; the digest is that of all of it, and of nothing else."""
    with HostFolder(str(folder)) as opened:
        contents = Contents()
        decoder = bundle.Decoder()
        entries = [e for chunk in opened.read(contents) for e, _, _ in decoder.feed(chunk)]
        assert decoder.whole
        assert [e.path.decode() for e in entries] == list(contents.entries)
        assert contents.entries["sub/run.sh"].executable
        assert contents.entries["sub/deep/up"] == Found("link", target="../../a.txt")
        assert set(contents.entries) == {
            "a.txt", "sub", "sub/run.sh", "sub/near", "sub/deep", "sub/deep/up",
        }  # fmt: skip
        assert contents.left_out.count == 3
        assert (contents.files, contents.bytes) == (2, 10)
        before = contents.digest
        assert opened.contents().digest == before
        (folder / "away").unlink()
        assert opened.contents().digest == before
        (folder / "a.txt").write_text("b")
        assert opened.contents().digest != before


def test_what_cannot_be_given(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there, not a folder, too much: the user's to mend, and said how."""
    for path in (tmp_path / "none", folder / "a.txt"):
        with pytest.raises(UserError, match="cannot be opened"):
            HostFolder(str(path))
    monkeypatch.setattr("voidbox_lab.box.hostfolder.MAX_ENTRIES", 3)
    with HostFolder(str(folder)) as opened, pytest.raises(LimitExceeded, match="smaller"):
        opened.contents()
    monkeypatch.setattr("voidbox_lab.box.hostfolder.MAX_ENTRIES", MAX_ENTRIES)
    with (folder / "huge").open("wb") as file:
        file.truncate(3 << 30)
    with HostFolder(str(folder)) as opened, pytest.raises(LimitExceeded):
        opened.contents()


def test_a_file_that_shrinks_is_said(folder: Path) -> None:
    """Half a file would pass for a whole one."""
    (folder / "big").write_bytes(bytes(3 << 20))
    with HostFolder(str(folder)) as opened:
        chunks = opened.read(Contents())
        next(chunks)
        next(chunks)
        os.truncate(folder / "big", 1)
        with pytest.raises(UserError, match="shorter"):
            list(chunks)


def test_a_walk_that_is_left_holds_nothing_open(folder: Path) -> None:
    """Before its first piece, or in the midst of it."""
    with HostFolder(str(folder)) as opened:
        held = held_open()
        for pieces in range(8):
            chunks = opened.read(Contents())
            for _ in range(pieces):
                next(chunks, None)
            chunks.close()
            assert held_open() == held, pieces


def test_changes_come_back(folder: Path) -> None:
    """New, changed and removed; rights stay the host's own but for executability; nothing of ours stays behind."""
    (folder / "a.txt").chmod(0o600)
    kept = without(same(folder), "a.txt", "sub/near", "sub/run.sh")
    staging = written(
        folder,
        *kept,
        there(Path("a.txt"), data=b"new"),
        there(Path("made"), "dir"),
        there(Path("made/tool"), data=b"#!", x=True),
        there(Path("made/link"), "link", b"../a.txt"),
    )
    assert (folder / "a.txt").read_text() == "new"
    assert (folder / "a.txt").stat().st_mode & 0o7777 == 0o600
    assert (folder / "made/tool").stat().st_mode & 0o111
    assert not (folder / "made/tool").stat().st_mode & 0o7000
    assert str((folder / "made/link").readlink()) == "../a.txt"
    assert not (folder / "sub/run.sh").exists()
    assert str((folder / "away").readlink()) == "/etc/passwd"
    assert (folder / "fifo").is_fifo()
    assert not [name for name in tree(folder) if ".voidbox" in name]
    with HostFolder(str(folder)) as opened:
        assert opened.contents().digest == staging.after.digest


def test_what_becomes_something_else(folder: Path) -> None:
    """A directory in a file's place, a file in a directory's, a link in either's."""
    kept = without(same(folder), "a.txt", "sub/deep", "sub/deep/up", "sub/near")
    items = [there(Path("a.txt"), "dir"), there(Path("a.txt/in"), data=b"1"), there(Path("sub/deep"), data=b"2")]
    written(folder, *kept, *items, there(Path("sub/near"), "dir"))
    assert (folder / "a.txt/in").read_text() == "1"
    assert (folder / "sub/deep").read_text() == "2"
    assert (folder / "sub/near").is_dir()


@pytest.mark.parametrize(
    ("swap", "path"),
    [
        (lambda f: ((f / "sub").rename(f / "gone"), (f / "sub").symlink_to("../secret")), "sub/key"),
        (lambda f: (f / "new").symlink_to("../secret/key"), "new"),
        (lambda f: (f / "new").symlink_to("../secret"), "new/key"),
        (lambda f: (f / "a.txt").write_text("mine"), "a.txt"),
        (lambda f: (f / "a.txt").unlink(), "a.txt"),
        (lambda f: (f / "new").write_text("mine"), "new"),
        (lambda f: os.mkfifo(f / "new"), "new"),
    ],
)
def test_the_host_that_changed_meanwhile(
    folder: Path, tmp_path: Path, swap: Callable[[Path], Any], path: str
) -> None:
    """Nothing is written over it or through it; what the box made is in a directory of the folder."""
    kept = without(same(folder), path)
    if path == "new/key":
        kept.append(there(Path("new"), "dir"))
    with pytest.raises(UserError) as caught:
        written(folder, *kept, there(Path(path), data=b"evil"), first=lambda: swap(folder))
    assert caught.value.cause == "mount-conflict"
    assert (tmp_path / "secret/key").read_text() == "key"
    assert tree(tmp_path / "secret") == {"key"}
    assert (folder / "aside" / path).read_text() == "evil"
    if path == "a.txt" and (folder / path).exists():
        assert (folder / path).read_text() == "mine"


def test_changes_of_others_are_no_conflict(folder: Path) -> None:
    """Two boxes on one folder: each brings back its own, and the same twice is the same."""
    kept = same(folder)

    def other() -> None:
        (folder / "sub/theirs").write_text("theirs")
        (folder / "both").write_text("both")

    written(folder, *kept, there(Path("mine"), data=b"mine"), there(Path("both"), data=b"both"), first=other)
    assert {"mine", "both", "sub/theirs"} <= tree(folder)


@pytest.mark.parametrize(
    ("swap", "drop", "items", "conflict"),
    [
        # Its directory is gone: there is no place for what is new there.
        (lambda f: shutil.rmtree(f / "sub/deep"), (), [there(Path("sub/deep/new"))], "sub/deep/new"),
        (
            lambda f: shutil.rmtree(f / "sub"),
            (),
            [there(Path("sub/new"), "dir"), there(Path("sub/new/x"))],
            "sub/new",
        ),
        # It became a file, and on the host it holds more than the box was given.
        (
            lambda f: None,
            ("sub", "sub/run.sh", "sub/near", "sub/deep", "sub/deep/up"),
            [there(Path("sub"))],
            "sub",
        ),
        (
            lambda f: (f / "sub/deep/more").touch(),
            ("sub/deep", "sub/deep/up"),
            [there(Path("sub/deep"), "link", b"near")],
            "sub/deep",
        ),
    ],
)
def test_a_conflict_is_seen_before_anything_is_written(
    folder: Path, swap: Callable[[Path], Any], drop: Sequence[str], items: list[Packed], conflict: str
) -> None:
    """A change of one file and the end of another wait for it, and all that the box made is kept."""
    (folder / "z.txt").write_text("z")
    kept = without(same(folder), "a.txt", "z.txt", *drop)
    items = [there(Path("a.txt"), data=b"changed"), *items]
    with pytest.raises(UserError, match=rf"\({conflict}\)") as caught:
        written(folder, *kept, *items, first=lambda: swap(folder))
    assert caught.value.cause == "mount-conflict"
    assert (folder / "a.txt").read_text() == "a"
    assert (folder / "z.txt").read_text() == "z"
    assert (folder / "aside/a.txt").read_text() == "changed"
    assert {item.path for item in items} <= tree(folder / "aside")


def test_the_rest_is_kept_when_writing_ends_half_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no place yet is beside what has one: nothing that the box made goes with the staging."""
    place = Staging._place

    def failing(self: Staging, root: HostFolder, path: str) -> None:
        if path == "l" and root.path == str(folder):
            os.symlink("a.txt", "link", dir_fd=self._fd)
            raise OSError(errno.EIO, "Input/output error")
        place(self, root, path)

    monkeypatch.setattr(Staging, "_place", failing)
    items = [
        there(Path("a.txt"), data=b"changed"),
        there(Path("l"), "link", b"a.txt"),
        there(Path("n"), data=b"new"),
    ]
    with pytest.raises(UserError, match=r"half-way \(Input/output error\).*the rest is in .*/aside") as caught:
        written(folder, *without(same(folder), "a.txt"), *items)
    assert caught.value.cause == "mount"
    assert (folder / "a.txt").read_text() == "changed"
    assert tree(folder / "aside") == {"l", "n"}
    assert (folder / "aside/n").read_text() == "new"
    assert not [name for name in tree(folder) if ".voidbox" in name]


@pytest.mark.parametrize(
    ("items", "led"),
    [
        ([there(Path("l"), "link", b"away/x")], "l"),
        ([there(Path("l"), "link", b"sub/out/key")], "l"),
        ([there(Path("d"), "dir"), there(Path("d/l"), "link", b"../sub/out")], "d/l"),
        # By a link of its own, or one of the user's that it was given.
        ([there(Path("k"), "link", b"sub"), there(Path("l"), "link", b"k/out/key")], "l"),
        ([there(Path("l"), "link", b"sub/beyond/key")], "l"),
        ([there(Path("l"), "link", b"moved/key")], "l"),
    ],
)
def test_no_link_comes_back_that_leads_out_by_one_of_the_host(folder: Path, items: list[Packed], led: str) -> None:
    """The box was not given ``away`` and ``sub/out``, and its link looks as if it stayed inside."""
    (folder / "sub/beyond").symlink_to("out")
    (folder / "moved").mkdir()

    def first() -> None:
        (folder / "moved").rmdir()
        (folder / "moved").symlink_to("../secret")

    with pytest.raises(UserError, match=rf"\({led}\)"):
        written(folder, *same(folder), *items, first=first)
    assert not (folder / led).is_symlink()
    assert (folder / "aside" / led).is_symlink()
    assert not (folder / "aside" / led).exists()


def test_links_that_lead_nowhere_or_round_and_round_stay_inside(folder: Path) -> None:
    """No harm in them."""
    targets = {"l1": "l2", "l2": "l1", "none": "nothing/there", "d": "sub/near", "t": "sub/deep/up"}
    written(folder, *same(folder), *(there(Path(p), "link", t.encode()) for p, t in targets.items()))
    assert {str((folder / p).readlink()) for p in targets} == set(targets.values())


def test_a_link_that_the_user_put_there_is_not_written_through(folder: Path, tmp_path: Path) -> None:
    """The box never saw ``sub/out``, which leads out: what it makes there is a conflict."""
    items = [there(Path("sub/out"), "dir"), there(Path("sub/out/key"), data=b"evil")]
    with pytest.raises(UserError):
        written(folder, *same(folder), *items)
    assert (tmp_path / "secret/key").read_text() == "key"


def test_a_guest_that_claims_what_it_was_not_given(folder: Path) -> None:
    """An untouched file that never was."""
    with pytest.raises(ProviderError):
        written(folder, there(Path("secret"), "same"))
    assert not [name for name in tree(folder) if ".voidbox" in name]


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        ("l", "a/b", True), ("d/l", "../a", True), ("l", "..", False), ("d/l", "../..", False),
        ("l", "/etc", False), ("l", "a/../../b", False), ("d/l", "a/../b", False), ("l", "", False),
        ("l", ".", False), ("l", "a//b", False),
        ("d/e/l", "../..", True), ("d/l", "../../d/x", False),
    ],
)  # fmt: skip
def test_links_that_stay(path: str, target: str, inside: bool) -> None:
    """Whatever else is a link."""
    assert bundle.stays_inside(path.encode(), target.encode()) is inside


async def test_there_and_back_through_the_agent(folder: Path, tmp_path: Path) -> None:
    """The real guest agent, as a process here: in, changed, back; only what changed travels."""
    place = tmp_path / "guest/place"
    (tmp_path / "vm").mkdir()
    mounts = [HostMount(source=str(folder), path="/data", read_only=False).model_copy(update={"path": str(place)})]
    async with guest_box(tmp_path / "vm") as box, mounted(box, mounts, Policy()) as copied:
        event = copied[0].event
        assert (event.direction, event.how, event.files, event.bytes) == ("in", "copy", 2, 10)
        assert str((place / "sub/deep/up").readlink()) == "../../a.txt"
        (place / "a.txt").write_text("changed")
        (place / "sub/run.sh").unlink()
        (place / "sub/near").unlink()
        back = [event async for event in bring_back(box, copied, "aside")]
        assert [(e.direction, e.files, e.bytes) for e in back] == [("out", 1, 7)]
        assert isinstance(back[0], Mounted)
        assert (folder / "a.txt").read_text() == "changed"
        assert not (folder / "sub/run.sh").exists()
        (place / "odd").symlink_to(os.fsdecode(b"\xff"))
        (place / "a.txt").write_text("again")
        with pytest.raises(CommandFailed, match="odd"):
            async for _ in bring_back(box, copied, "aside"):
                pass
        assert (folder / "a.txt").read_text() == "changed"
        (place / "odd").unlink()
        (place / "away").symlink_to("/etc")
        with pytest.raises(CommandFailed, match="away"):
            async for _ in bring_back(box, copied, "aside"):
                pass
        with pytest.raises(UserError) as caught:
            async with mounted(box, mounts, Policy()):
                pass
        assert caught.value.cause == "mount"
