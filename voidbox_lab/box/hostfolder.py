"""A folder of the host as a box is to have it: what is in it, by descriptors, so that nothing leads out of it.

Every directory is opened below one that is open, and no symbolic link is followed, except where the user's own
path to the folder has some. Not for what a box changed: `writeback`.
"""

from __future__ import annotations

import hashlib
import os
import stat as st
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from voidbox_lab.box.bundles import LeftOut
from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.spec.digest import digest_json
from voidbox_lab.spec.skill import check_relative
from voidbox_lab.wire import bundle

MAX_ENTRIES = 20_000
"""Files, directories and links of one folder."""
MAX_BYTES = 2 << 30
MAX_DEPTH = 64
PIECE = 1 << 20
OWN = ".voidbox-"
"""Begins the name of a directory in a folder that is ours, for what is about to be written back."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Found:
    """A file, a directory or a link in a folder."""

    kind: Literal["dir", "file", "link"]
    digest: str = ""
    """Of a file's bytes."""
    size: int = 0
    executable: bool = False
    target: str = ""
    """A link's."""


@dataclass
class Contents:
    """What is in a folder, by path; the digest of the list is the folder's."""

    entries: dict[str, Found] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    bytes: int = 0
    """Of all files."""

    @property
    def files(self) -> int:
        """How many files."""
        return sum(found.kind == "file" for found in self.entries.values())

    @property
    def digest(self) -> str:
        """Of the list of all that is in it."""
        return digest_json(
            {p: [f.kind, f.digest or f.target, f.executable] for p, f in sorted(self.entries.items())}
        )


class HostFolder:
    """An open folder. Blocking; close it."""

    def __init__(self, path: str, below: int | None = None) -> None:
        """Open the folder at `path`; or take it for that, with `below`, its open descriptor.

        Raises:
            UserError: there is none, or this user may not read it (cause ``mount``).
        """
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if below is None else below
        except OSError as e:
            raise UserError(
                f"The folder {path} cannot be opened ({e.strerror}) by the daemon on this host; check the path, "
                "and who may read it.",
                cause="mount",
            ) from None

    def close(self) -> None:
        """Let it go."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> HostFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, contents: Contents) -> Iterator[bytes]:
        """The folder as a bundle (`wire.bundle`); `contents` is filled as it comes, and whole at the end.

        Links that stay inside come along; others, and what is no regular file, are left out.

        Raises:
            UserError: a file cannot be read, or changes while it is read (cause ``mount``).
            LimitExceeded: more than `MAX_ENTRIES` or `MAX_BYTES` (cause ``mount``).
        """
        yield from self._directory(self.fd, ".", "", 0, contents)

    def contents(self) -> Contents:
        """What is in it now. Errors as `read`."""
        contents = Contents()
        for _ in self.read(contents):
            pass
        return contents

    def look(self, path: str) -> Found | Literal["other"] | None:
        """What is at `path` now; ``other`` for what is none of ours, or below a link."""
        parent, _, name = path.rpartition("/")
        try:
            with self.directory(parent) as fd:
                info = os.lstat(name, dir_fd=fd)
                if st.S_ISDIR(info.st_mode):
                    return Found("dir")
                if st.S_ISLNK(info.st_mode):
                    return Found("link", target=os.readlink(name, dir_fd=fd))
                if not st.S_ISREG(info.st_mode):
                    return "other"
                sha, size = hashlib.sha256(), 0
                for piece in _pieces(os.open(name, _READ, dir_fd=fd), self._shown(path)):
                    sha.update(piece)
                    size += len(piece)
                return Found("file", f"sha256:{sha.hexdigest()}", size, bool(info.st_mode & 0o100))
        except FileNotFoundError:
            return None
        except OSError:
            return "other"

    def link(self, path: str) -> Found | None:
        """The link that is at `path` now, if that is one and no link is on the way."""
        parent, _, name = path.rpartition("/")
        try:
            with self.directory(parent) as fd:
                return Found("link", target=os.readlink(name, dir_fd=fd))
        except OSError:
            return None

    def directory(self, path: str) -> _Open:
        """A descriptor of the directory at `path` in it, as a context; no link on the way. Raises OSError."""
        fd = os.open(".", _DIRECTORY, dir_fd=self.fd)
        for name in path.split("/") if path else ():
            try:
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return _Open(fd)

    def _shown(self, path: str) -> str:
        return f"{self.path.rstrip('/')}/{path}"

    def _directory(self, parent: int, name: str, prefix: str, depth: int, contents: Contents) -> Iterator[bytes]:
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
        except OSError as e:
            raise self._unreadable(prefix, e) from None
        try:
            with os.scandir(fd) as scan:
                names = []
                for item in scan:
                    names.append(item.name)
                    if len(names) > MAX_ENTRIES:
                        raise self._too_large()
            for name in sorted(names):
                if prefix or not name.startswith(OWN):
                    yield from self._one(fd, name, prefix + name, depth, contents)
        except OSError as e:
            raise self._unreadable(prefix, e) from None
        finally:
            os.close(fd)

    def _one(self, parent: int, name: str, path: str, depth: int, contents: Contents) -> Iterator[bytes]:
        try:
            check_relative(path)
            encoded = path.encode()
        except ValueError:
            contents.left_out.add(path, "path")
            return
        try:
            info = os.lstat(name, dir_fd=parent)
        except FileNotFoundError:
            return
        if len(contents.entries) >= MAX_ENTRIES:
            raise self._too_large()
        if st.S_ISLNK(info.st_mode):
            target = os.readlink(name, dir_fd=parent)
            if not bundle.stays_inside(encoded, os.fsencode(target)) or not _is_text(target):
                contents.left_out.add(path, "link")
                return
            contents.entries[path] = Found("link", target=target)
            yield bundle.head(bundle.LINK, 0o777, encoded, len(target.encode())) + target.encode()
        elif st.S_ISDIR(info.st_mode):
            if depth >= MAX_DEPTH:
                contents.left_out.add(path, "path")
                return
            contents.entries[path] = Found("dir")
            yield bundle.head(bundle.DIRECTORY, 0o755, encoded)
            yield from self._directory(parent, name, f"{path}/", depth + 1, contents)
        elif st.S_ISREG(info.st_mode):
            yield from self._file(parent, name, path, contents)
        else:
            contents.left_out.add(path, "special")

    def _file(self, parent: int, name: str, path: str, contents: Contents) -> Iterator[bytes]:
        try:
            fd = os.open(name, _READ, dir_fd=parent)
        except OSError as e:
            raise self._unreadable(path, e) from None
        info = os.fstat(fd)
        if not st.S_ISREG(info.st_mode):
            os.close(fd)
            contents.left_out.add(path, "special")
            return
        contents.bytes += info.st_size
        if contents.bytes > MAX_BYTES:
            os.close(fd)
            raise self._too_large()
        executable, sha = bool(info.st_mode & 0o100), hashlib.sha256()
        data = bundle.head(bundle.FILE, 0o755 if executable else 0o644, path.encode(), info.st_size)
        for piece in _pieces(fd, self._shown(path), info.st_size):
            sha.update(piece)
            yield data + piece
            data = b""
        if data:
            yield data
        contents.entries[path] = Found("file", f"sha256:{sha.hexdigest()}", info.st_size, executable)

    def _unreadable(self, path: str, error: OSError) -> UserError:
        return UserError(
            f"{self._shown(path)} cannot be read ({error.strerror}), so its folder cannot be given to a box; let "
            "the daemon's user read it, or give the box another folder.",
            cause="mount",
        )

    def _too_large(self) -> LimitExceeded:
        return LimitExceeded(
            f"The folder {self.path} has more than {MAX_ENTRIES} files and directories, or {MAX_BYTES >> 30} GiB, "
            "and is copied into the box; give it a smaller one, or use a volume.",
            limit="mount",
            value=MAX_ENTRIES,
            unit="files",
            source="user",
        )


class _Open:
    """An open descriptor as a context."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _pieces(fd: int, shown: str, size: int | None = None) -> Iterator[bytes]:
    """All of `fd`, or exactly `size` bytes; closed in the end."""
    left = size
    with os.fdopen(fd, "rb", buffering=0) as file:
        while left is None or left:
            data = file.read(PIECE if left is None else min(left, PIECE))
            if not data:
                if left is None:
                    return
                raise UserError(
                    f"{shown} became shorter while it was read; try again once it rests.", cause="mount"
                )
            left = None if left is None else left - len(data)
            yield data


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
