"""The initramfs archive, read back by an independent reader of the newc format."""

from __future__ import annotations

import stat

import pytest

from voidbox_lab.images import initramfs
from voidbox_lab.images.assemble import initramfs_entries


def read(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Name to (mode, data, device), per Documentation/driver-api/early-userspace/buffer-format.rst."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        assert at % 4 == 0
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, _ = fields
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        assert archive[at + 110 + name_size - 1] == 0
        data = at + 110 + name_size
        data += -data % 4
        if name == "TRAILER!!!":
            assert not archive[data:].strip(b"\0")
            return found
        assert (uid, gid, mtime) == (0, 0, 0)
        found[name] = (mode, archive[data : data + size], (major, minor))
        at = data + size
        at += -at % 4


def test_every_kind_of_entry_survives() -> None:
    """Directories, files of awkward lengths, links and device nodes."""
    entries = [
        initramfs.directory("d"),
        *(initramfs.file(f"d/{n}", b"x" * n, 0o755) for n in range(9)),
        initramfs.symlink("d/link", "../target"),
        initramfs.character_device("console", 5, 1),
    ]
    found = read(initramfs.archive(entries))
    assert list(found) == [e.name for e in entries]
    assert found["d/7"] == (stat.S_IFREG | 0o755, b"x" * 7, (0, 0))
    assert found["d/link"][1] == b"../target"
    assert found["console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert len(initramfs.archive(entries)) % 512 == 0


@pytest.mark.parametrize("name", ["", "/abs", "a/../b", "a//b", ".", "a\0b"])
def test_names_that_would_surprise_are_refused(name: str) -> None:
    """The kernel unpacks as root into its first file system."""
    with pytest.raises(ValueError, match="cannot be a name"):
        initramfs.archive([initramfs.file(name, b"")])


def test_a_name_comes_once() -> None:
    """A second entry would silently replace the first."""
    with pytest.raises(ValueError, match="cannot be a name"):
        initramfs.archive([initramfs.file("a", b"1"), initramfs.file("a", b"2")])


def test_ours_holds_what_init_uses() -> None:
    """Modules in load order, mount points for twenty layers, a console; parents before children."""
    found = read(initramfs.archive(initramfs_entries(b"#!/bin/sh\n", b"busybox", [("b", b"B"), ("a", b"A")])))
    assert found["m/order"][1] == b"b\na\n"
    assert found["m/a.ko"][1] == b"A"
    assert {"l/0", "l/19", "newroot", "scratch", "dev/console", "bin/switch_root"} <= found.keys()
    names = list(found)
    assert all("/" not in n or names.index(n.rpartition("/")[0]) < names.index(n) for n in names)
