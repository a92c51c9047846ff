"""A tree of files as one stream of bytes: what ``pack`` sends and ``unpack`` takes.

An entry is a header in network byte order, its path and its bytes::

    kind:u8  mode:u16  path_length:u16  size:u64  path[path_length]  data[size]

A directory comes before what is in it. Paths are relative, and never lead out of the tree. Owners and times do
not travel. This is no tar, for PID 1 of a guest and whoever reads what a guest sent should parse as little as
possible: no links to files, no numbers written as text, no extensions, and one bound for each length.
"""

from __future__ import annotations

from struct import Struct

HEADER = Struct("!BHHQ")
DIRECTORY, FILE, LINK, SAME = 1, 2, 3, 4
"""Kinds. The data of a LINK is its target. SAME is a file that is as it was once it was unpacked; it has none."""
MAX_PATH = 1000
"""Bytes of an entry's path."""
MAX_NAME = 255
"""Bytes of each part of it."""
MAX_TARGET = 4095
"""Bytes of a link's target (PATH_MAX, without its NUL)."""
MAX_SIZE = 1 << 40
"""Bytes of one file; what bounds a transfer is its receiver's own limit."""


class BundleError(Exception):
    """The stream is not what it should be. Whoever reads it stops."""


class Entry:
    """What is in a tree at `path`; `size` is that of the data which follows."""

    __slots__ = ("kind", "mode", "path", "size")

    def __init__(self, kind: int, mode: int, path: bytes, size: int) -> None:
        self.kind, self.mode, self.path, self.size = kind, mode, path, size


def is_path(path: bytes) -> bool:
    """Whether `path` stays below the tree's root, and is short enough."""
    parts = path.split(b"/")
    return len(path) <= MAX_PATH and not any(
        part in (b"", b".", b"..") or len(part) > MAX_NAME or b"\0" in part for part in parts
    )


def stays_inside(path: bytes, target: bytes) -> bool:
    """Whether a link at `path` to `target` ends in the tree, whatever else is in it.

    It may climb, but not higher than the root, and not after it has gone down: what it went down into may be a
    link. So no chain of links that each pass this test leaves the tree.
    """
    parts = target.split(b"/")
    up = 0
    while up < len(parts) and parts[up] == b"..":
        up += 1
    down = parts[up:]
    if any(part in (b"", b".", b"..") or b"\0" in part for part in down):
        return False
    return 0 < len(target) <= MAX_TARGET and up <= path.count(b"/")


def head(kind: int, mode: int, path: bytes, size: int = 0) -> bytes:
    """An entry without its data."""
    return HEADER.pack(kind, mode, len(path), size) + path


class Decoder:
    """Bytes in, entries out, whatever the pieces they come in."""

    def __init__(self) -> None:
        self._rest = b""
        self._entry: Entry | None = None
        self._left = 0

    @property
    def whole(self) -> bool:
        """Whether the stream may end here."""
        return not self._rest and self._entry is None

    def feed(self, data: bytes) -> list[tuple[Entry, bytes, bool]]:
        """Pieces of entries: the entry, some of its data, and whether that was the last. A target comes whole.

        Raises:
            BundleError: a header is out of bounds.
        """
        data = self._rest + data if self._rest else data
        found: list[tuple[Entry, bytes, bool]] = []
        at = 0
        while at < len(data):
            if self._entry is None:
                entry, end = _entry(data, at)
                if entry is None:
                    break
                at = end
                if not entry.size:
                    found.append((entry, b"", True))
                    continue
                self._entry, self._left = entry, entry.size
            piece = data[at : at + self._left]
            if not piece or (self._entry.kind == LINK and len(piece) < self._left):
                break
            at += len(piece)
            self._left -= len(piece)
            found.append((self._entry, piece, not self._left))
            if not self._left:
                self._entry = None
        self._rest = data[at:]
        return found


def _entry(data: bytes, at: int) -> tuple[Entry | None, int]:
    """The entry that begins at `at` and where its data does; None while it is not all there."""
    if len(data) - at < HEADER.size:
        return None, at
    kind, mode, length, size = HEADER.unpack_from(data, at)
    if not DIRECTORY <= kind <= SAME or mode > 0o777 or not 0 < length <= MAX_PATH:
        raise BundleError("an entry's header is out of bounds")
    if size > {FILE: MAX_SIZE, LINK: MAX_TARGET}.get(kind, 0) or (kind == LINK and not size):
        raise BundleError("an entry's size is out of bounds")
    end = at + HEADER.size + length
    if len(data) < end:
        return None, at
    path = data[end - length : end]
    if not is_path(path):
        raise BundleError("an entry's path leads out of its tree")
    return Entry(kind, mode, path, size), end
