"""Unpacking hostile archives: nothing may land outside the tree, whatever a member is called."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest

from voidbox_lab.errors import ProviderError
from voidbox_lab.images.unpack import Tree, merge_usr


def tar(*members: tuple[str, dict], damage: int = 0) -> io.BytesIO:
    """An uncompressed archive; each member is (name, TarInfo attributes), with `data` as its content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, attributes in members:
            info = tarfile.TarInfo(name)
            data = attributes.pop("data", b"")
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    raw = out.getvalue()
    return io.BytesIO(raw[:-damage] if damage else raw)


DIR = {"type": tarfile.DIRTYPE, "mode": 0o755}


def link(target: str) -> dict:
    """Attributes of a symbolic link."""
    return {"type": tarfile.SYMTYPE, "linkname": target}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A merged-/usr tree beside a file that must stay as it is."""
    (tmp_path / "outside").write_text("untouched")
    root = tmp_path / "root"
    root.mkdir()
    merge_usr(root)
    yield Tree(root)
    assert (tmp_path / "outside").read_text() == "untouched"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outside", "root"]


def test_merged_usr_and_parents(tree: Tree) -> None:
    """/bin/x lands in usr/bin, also where the package ships /bin as a directory; parents are made."""
    tree.add_tar(
        tar(("./bin/", dict(DIR)), ("./bin/x", {"data": b"X", "mode": 0o755}), ("./a/b/c", {"data": b"C"}))
    )
    assert (tree.root / "usr/bin/x").read_bytes() == b"X"
    assert (tree.root / "bin").is_symlink()
    assert (tree.root / "a/b/c").read_bytes() == b"C"
    assert stat.S_IMODE((tree.root / "a/b").stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/../outside"])
def test_climbing_names_are_refused(tree: Tree, name: str) -> None:
    """The message says which member and why."""
    with pytest.raises(ProviderError, match="climbs"):
        tree.add_tar(tar((name, {"data": b"evil"})))


@pytest.mark.parametrize("target", ["../..", "../../../../../..", "/", "/..", "../outside"])
def test_links_out_lead_back_inside(tree: Tree, target: str) -> None:
    """A link to anywhere, then a file through it: the file stays in the tree, as the guest would see it."""
    tree.add_tar(tar(("esc", link(target)), ("esc/outside/f", {"data": b"evil"})))
    assert [p for p in tree.root.rglob("f") if p.read_bytes() == b"evil"]


def test_absolute_links_through_links(tree: Tree, tmp_path: Path) -> None:
    """The host's own absolute path is only a path below the root."""
    tree.add_tar(tar(("a", link(str(tmp_path))), ("b", link("a")), ("b/outside", {"data": b"evil"})))
    assert (tree.root / str(tmp_path).lstrip("/") / "outside").read_bytes() == b"evil"


def test_a_ring_of_links_ends(tree: Tree) -> None:
    """Not in a loop, but in an error."""
    with pytest.raises(ProviderError, match="ring"):
        tree.add_tar(tar(("a", link("b")), ("b", link("a")), ("a/x", {"data": b""})))


def test_writing_over_a_link_replaces_the_link(tree: Tree, tmp_path: Path) -> None:
    """A regular file named like an earlier link does not write through it."""
    tree.add_tar(tar(("l", link(str(tmp_path / "outside"))), ("l", {"data": b"new"})))
    assert (tree.root / "l").read_bytes() == b"new"
    assert not (tree.root / "l").is_symlink()


def test_hard_links_stay_inside(tree: Tree) -> None:
    """To a member: linked. To a host file, a directory or through a link: refused."""
    hard = {"type": tarfile.LNKTYPE, "linkname": "./one"}
    tree.add_tar(tar(("one", {"data": b"1"}), ("two", dict(hard))))
    assert (tree.root / "one").samefile(tree.root / "two")
    for target in ("etc/passwd", "/etc/passwd", "usr", "bin"):
        with pytest.raises(ProviderError, match="not there"):
            tree.add_tar(tar(("three", {"type": tarfile.LNKTYPE, "linkname": target})))
    with pytest.raises(ProviderError, match="climbs"):
        tree.add_tar(tar(("four", {"type": tarfile.LNKTYPE, "linkname": "../outside"})))


def test_rights_and_devices(tree: Tree) -> None:
    """Set-id bits go, the sticky bit of a directory stays, devices and FIFOs are left out."""
    tree.add_tar(
        tar(
            ("su", {"data": b"", "mode": 0o4755}),
            ("sg", {"data": b"", "mode": 0o2755}),
            ("tmp", {"type": tarfile.DIRTYPE, "mode": 0o1777}),
            ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
            ("disk", {"type": tarfile.BLKTYPE}),
            ("pipe", {"type": tarfile.FIFOTYPE}),
            ("secret", {"data": b"", "mode": 0}),
        )
    )
    modes = {n: stat.S_IMODE((tree.root / n).stat().st_mode) for n in ("su", "sg", "tmp", "secret")}
    assert modes == {"su": 0o755, "sg": 0o755, "tmp": 0o1777, "secret": 0o400}
    assert not any((tree.root / n).exists() for n in ("null", "disk", "pipe"))


def test_exclude_and_include(tmp_path: Path) -> None:
    """By whole path parts, never by the beginning of a name."""
    archive = tar(*((n, {"data": b""}) for n in ("usr/share/doc/x", "usr/share/docs", "boot/vmlinuz", "etc/a")))
    Tree(tmp_path / "one", exclude=["usr/share/doc"]).add_tar(archive)
    assert not (tmp_path / "one/usr/share/doc").exists()
    assert (tmp_path / "one/usr/share/docs").exists()
    archive.seek(0)
    Tree(tmp_path / "two", include=["boot"]).add_tar(archive)
    assert [p.name for p in (tmp_path / "two").rglob("*") if p.is_file()] == ["vmlinuz"]


def test_a_cut_archive_is_an_error(tree: Tree) -> None:
    """Not a shorter tree."""
    with pytest.raises(ProviderError, match="damaged"):
        tree.add_tar(tar(("big", {"data": bytes(50_000)}), damage=30_000))
