"""Trees in and out in one request: unpack, pack. Also how folders of the host come to be in a box.

Packing follows no link, by descriptors, so that no directory which is swapped meanwhile leads elsewhere; it does a
bounded amount of work at a time, for PID 1 has others to serve.
"""

from __future__ import annotations

import os
import stat as st
from errno import ELOOP

from wire.bundle import (
    DIRECTORY,
    FILE,
    LINK,
    SAME,
    BundleError,
    Decoder,
    Entry,
    head,
    is_path,
    stays_inside,
)
from wire.protocol import AGENT_UID, BAD_REQUEST, BUSY, CANCELLED, TOO_LARGE

from .calls import Call, Handler, OpError, os_error
from .files import MAX_DEPTH, As
from .volumes import make_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .loop import Loop
    from .places import Places

    Marks = dict[bytes, tuple[int, int]]

CHUNK = 64 * 1024
STEPS = 64
"""Entries, or pieces of files, that are looked at before others have their turn."""
MAX_SHOWN = 8
"""Of what was left out, so many are named."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Bundles:
    """The operations; unprivileged, as `places` say (tests on a host), they switch no user and mount nothing."""

    def __init__(self, loop: Loop, places: Places) -> None:
        self._loop, self._places, self._privileged = loop, places, places.privileged
        self._marks: dict[str, Marks] = {}
        """By place, what the files of a writable folder were like once they were there: changed time and size."""

    def _as(self, user: str) -> As:
        if user not in ("agent", "root"):
            raise OpError(BAD_REQUEST, "user must be agent or root")
        return As(AGENT_UID if user == "agent" and self._privileged else None)

    def unpack(self, call: Call) -> None:
        """Make the tree that comes as DATA at `path`; nothing in it may be there already but directories.

        With `mount` ``ro`` or ``rw`` it is a folder of the host: at a new place, read-only or the agent's,
        where the policy set next may let it write.
        """
        path, mount = call.path("path"), call.text("mount", "")
        if mount not in ("", "ro", "rw"):
            raise OpError(BAD_REQUEST, "mount must be ro or rw")
        user = self._as("root" if mount else call.text("user", "agent"))
        try:
            if mount:
                make_place(path)
            with user:
                os.makedirs(path, 0o755, exist_ok=True)
                root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, path) from None
        owner = AGENT_UID if mount == "rw" and self._privileged else -1
        if owner >= 0:
            os.fchown(root, owner, owner)
        marks: Marks = {}
        if mount == "rw":
            self._marks[path] = marks
        call.handler = _Unpack(
            call, user, root, path, owner, marks if mount == "rw" else None, lambda: self._done(path, mount)
        )

    def _done(self, path: str, mount: str) -> None:
        if mount:
            self._places.add(path, read_only=mount == "ro")

    def pack(self, call: Call) -> None:
        """Send the tree at `path`: at most `max_files` entries and `max_bytes` of data, else an error and not all.

        With `links`, symbolic links that stay inside come along; with `changed`, of a writable folder of the host
        only the names of files which were not touched since. Other links, what is no file, and volumes and other
        folders of the host are left out and named.
        """
        path, user = call.path("path"), self._as(call.text("user", "agent"))
        files, size = call.integer("max_files", 0, 0, 1 << 20), call.integer("max_bytes", 0, 0, 1 << 50)
        marks = self._marks.get(path, {}) if call.flag("changed") else {}
        disks = {os.fsencode(place) for place, _ in self._places.disks()}
        walk = _Walk(path, files, size, marks, call.flag("links"), disks)
        handler = _Pack(call, self._loop, user, walk)
        call.handler = handler
        handler.on_room()


class _Unpack(Handler):
    __slots__ = ("_bytes", "_call", "_decoder", "_fd", "_files", "_links", "_marks", "_owner", "_path", "_root",
                 "_then", "_user")  # fmt: skip

    def __init__(
        self, call: Call, user: As, root: int, path: str, owner: int, marks: Marks | None, then: Callable[[], None]
    ) -> None:
        self._call, self._user, self._root, self._path = call, user, root, path
        self._owner, self._marks, self._then = owner, marks, then
        self._decoder = Decoder()
        self._links: list[tuple[bytes, bytes]] = []
        self._fd = -1
        self._files = self._bytes = 0

    def on_data(self, channel: int, payload: bytes) -> None:
        try:
            with self._user:
                for entry, piece, last in self._decoder.feed(payload):
                    self._take(entry, piece, last)
        except BundleError as error:
            self._close()
            raise OpError(BAD_REQUEST, str(error)) from None
        except OSError as error:
            self._close()
            raise os_error(error, self._path) from None
        self._call.grant(channel, len(payload))

    def _take(self, entry: Entry, piece: bytes, last: bool) -> None:
        path, root = entry.path, self._root
        if entry.kind == FILE:
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(path, flags, 0o600, dir_fd=root)
                self._files += 1
            while piece:
                piece = piece[os.write(self._fd, piece) :]
            if last:
                self._bytes += entry.size
                os.fchmod(self._fd, 0o755 if entry.mode & 0o111 else 0o644)
                self._own(self._fd)
                if self._marks is not None:
                    info = os.fstat(self._fd)
                    self._marks[path] = (info.st_ctime_ns, info.st_size)
                os.close(self._fd)
                self._fd = -1
        elif entry.kind == DIRECTORY:
            try:
                os.mkdir(path, 0o755, dir_fd=root)
            except FileExistsError:
                if not st.S_ISDIR(os.lstat(path, dir_fd=root).st_mode):
                    raise
            self._own(path)
        elif entry.kind == LINK:
            self._links.append((path, piece))

    def _own(self, what: int | bytes) -> None:
        if self._owner >= 0:
            if isinstance(what, int):
                os.fchown(what, self._owner, self._owner)
            else:
                os.chown(what, self._owner, self._owner, dir_fd=self._root, follow_symlinks=False)

    def on_end(self, channel: int) -> None:
        try:
            if not self._decoder.whole:
                raise OpError(BAD_REQUEST, "the bundle ends in the midst of an entry")
            with self._user:
                # Last, so that nothing is written through one.
                for path, target in self._links:
                    os.symlink(target, path, dir_fd=self._root)
                    self._own(path)
            self._then()
        except OSError as error:
            raise os_error(error, self._path) from None
        finally:
            self._close()
        self._call.reply({"files": self._files, "bytes": self._bytes})

    def on_cancel(self, hard: bool) -> None:
        self._close()
        self._call.fail(OpError(CANCELLED, f"unpacking {self._path} was cancelled"))

    def _close(self) -> None:
        for fd in (self._fd, self._root):
            if fd >= 0:
                os.close(fd)
        self._fd = self._root = -1


class _Walk:
    """What is in a tree, piece by piece, and what was left out of it."""

    __slots__ = ("_bytes", "_disks", "_files", "_links", "_marks", "left_out", "path", "sent", "shown")

    def __init__(
        self, path: str, max_files: int, max_bytes: int, marks: Marks, links: bool, disks: set[bytes]
    ) -> None:
        self.path, self._files, self._bytes, self._marks, self._links = path, max_files, max_bytes, marks, links
        self._disks = disks
        self.sent = self.left_out = 0
        self.shown: list[list[str]] = []

    def tree(self) -> Iterator[bytes]:
        """The bundle of it. Nothing is open before the first piece, nor once it is closed."""
        root = os.open(self.path, _OPEN | os.O_DIRECTORY)
        try:
            yield from self._directory(root, b"", 0)
        finally:
            os.close(root)

    def _directory(self, fd: int, prefix: bytes, depth: int) -> Iterator[bytes]:
        with os.scandir(fd) as scan:
            names = []
            for item in scan:
                names.append(os.fsencode(item.name))
                if len(names) > self._files:
                    raise self._many()
        for name in sorted(names):
            yield from self._one(fd, name, prefix + name, depth)

    def _one(self, parent: int, name: bytes, path: bytes, depth: int) -> Iterator[bytes]:
        try:
            info = os.lstat(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except PermissionError:
            yield self._leave(path, "unreadable")
            return
        kind = st.S_IFMT(info.st_mode)
        if not is_path(path) or depth >= MAX_DEPTH:
            yield self._leave(path, "path")
        elif kind == st.S_IFLNK:
            target = os.readlink(name, dir_fd=parent) if self._links else b""
            if not target or not stays_inside(path, target):
                yield self._leave(path, "link")
            else:
                yield self._entry(LINK, 0o777, path, len(target)) + target
        elif kind not in (st.S_IFDIR, st.S_IFREG) or self._is_disk(path):
            yield self._leave(path, "special")
        else:
            try:
                fd = os.open(name, _OPEN, dir_fd=parent)
            except FileNotFoundError:
                return
            except OSError as error:
                yield self._leave(path, "link" if error.errno == ELOOP else "unreadable")
                return
            try:
                info = os.fstat(fd)
                if st.S_ISDIR(info.st_mode):
                    yield self._entry(DIRECTORY, 0o755, path, 0)
                    yield from self._directory(fd, path + b"/", depth + 1)
                elif st.S_ISREG(info.st_mode):
                    yield from self._file(fd, path, info)
                else:
                    yield self._leave(path, "special")
            finally:
                os.close(fd)

    def _is_disk(self, path: bytes) -> bool:
        """Whether a volume or another folder of the host is mounted there: what is in it is not of this tree."""
        return bool(self._disks) and os.path.join(os.fsencode(self.path), path) in self._disks

    def _file(self, fd: int, path: bytes, info: os.stat_result) -> Iterator[bytes]:
        if self._marks.get(path) == (info.st_ctime_ns, info.st_size):
            yield self._entry(SAME, 0, path, 0)
            return
        self._bytes -= info.st_size
        if self._bytes < 0:
            raise OpError(TOO_LARGE, f"{self.path} holds more bytes than were asked for", limit="bytes")
        yield self._entry(FILE, 0o755 if info.st_mode & 0o111 else 0o644, path, info.st_size)
        left = info.st_size
        while left:
            data = os.read(fd, min(left, CHUNK))
            if not data:
                shown = os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
                raise OpError(BUSY, f"{self.path}/{shown} became shorter while it was read")
            left -= len(data)
            yield data

    def _entry(self, kind: int, mode: int, path: bytes, size: int) -> bytes:
        self.sent += 1
        if self.sent > self._files:
            raise self._many()
        return head(kind, mode, path, size)

    def _many(self) -> OpError:
        return OpError(TOO_LARGE, f"{self.path} holds more than {self._files} entries", limit="files")

    def _leave(self, path: bytes, why: str) -> bytes:
        self.left_out += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append([path[:200].decode("utf-8", "backslashreplace"), why])
        return b""


class _Pack(Handler):
    __slots__ = ("_buffer", "_call", "_done", "_loop", "_resting", "_tree", "_user", "_walk")

    def __init__(self, call: Call, loop: Loop, user: As, walk: _Walk) -> None:
        self._call, self._loop, self._user, self._walk, self._tree = call, loop, user, walk, walk.tree()
        self._buffer = bytearray()
        self._done = self._resting = False

    def on_room(self) -> None:
        if self._resting:
            return
        steps = 0
        while room := self._call.room(0):
            try:
                with self._user:
                    while not self._done and len(self._buffer) < room and steps < STEPS:
                        piece = next(self._tree, None)
                        self._done = piece is None
                        self._buffer += piece or b""
                        steps += 1
            except OSError as error:
                raise os_error(error, self._walk.path) from None
            if data := bytes(self._buffer[:room]):
                del self._buffer[:room]
                self._call.send(0, data)
            if self._done and not self._buffer:
                self._call.end(0)
                walk = self._walk
                self._call.reply({"entries": walk.sent, "left_out": walk.left_out, "shown": walk.shown})
                return
            if steps >= STEPS and not self._done:
                self._resting = True
                self._loop.after(0, self._go_on)
                return

    def _go_on(self) -> None:
        self._resting = False
        if not self._call.closed:
            self._call.guarded(self.on_room)

    def on_cancel(self, hard: bool) -> None:
        with self._user:
            self._tree.close()  # type: ignore[attr-defined]  # it is a generator
        self._call.fail(OpError(CANCELLED, "packing was cancelled"))
