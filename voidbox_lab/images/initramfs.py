"""Writes the initramfs: a newc cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst).

The same entries give the same bytes: no times, no owners but root, inode numbers in order.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One file of an archive. `mode` holds the file type too (stat.S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR)."""

    name: str
    """Without a leading slash."""
    mode: int
    data: bytes = b""
    """Content, or a symbolic link's target."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


def directory(name: str) -> Entry:
    """A directory, mode 0755."""
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | mode, data)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(name, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """`entries` as a newc archive, in the order given (directories must come before what is in them).

    Raises:
        ValueError: a name is empty, absolute, climbs (``..``), or comes twice.
    """
    out = bytearray()
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        parts = entry.name.split("/")
        if "\0" in entry.name or any(p in {"", ".", ".."} for p in parts) or entry.name in seen:
            raise ValueError(f"{entry.name!r} cannot be a name in an initramfs")
        seen.add(entry.name)
        _append(out, entry, number)
    _append(out, Entry("TRAILER!!!", 0), 0)
    return bytes(out) + bytes(-len(out) % 512)


def _append(out: bytearray, entry: Entry, number: int) -> None:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % f for f in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
