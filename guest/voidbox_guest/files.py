"""Files in and out: put, get, stat, mkdir, list, remove.

Everything is done with the file-system identity of the user named in the request, so a put as the agent can write
only where the agent could have written itself, whatever links the agent has laid out. Nothing here blocks on what
is not a regular file or a directory.
"""

from __future__ import annotations

import os
import stat as st

from wire.protocol import (
    AGENT_UID,
    BAD_REQUEST,
    CANCELLED,
    IS_DIRECTORY,
    MAX_ENTRIES,
    NOT_REGULAR,
)

from .calls import Call, Handler, OpError, os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 64
MAX_LISTING = 192 * 1024
"""Bytes of JSON in one listing, roughly; a frame holds 256 KiB."""
_KINDS = {st.S_IFREG: "file", st.S_IFDIR: "dir", st.S_IFLNK: "link"}


class As:
    """Acts with a user's effective identity inside a ``with`` block.

    Safe because PID 1 is single-threaded and never yields inside one. The kernel drops the capabilities that
    override file permissions together with effective uid 0 (capabilities(7)).
    """

    __slots__ = ("_uid",)

    def __init__(self, uid: int | None) -> None:
        self._uid = uid

    def __enter__(self) -> None:
        if self._uid:
            os.setegid(self._uid)
            os.seteuid(self._uid)

    def __exit__(self, *_: object) -> None:
        if self._uid:
            os.seteuid(0)
            os.setegid(0)


class Files:
    """The file operations. `switch_user` False (tests on a host) does all as this process's user."""

    def __init__(self, *, switch_user: bool) -> None:
        self._switch_user = switch_user

    def _as(self, call: Call) -> As:
        user = call.text("user", "agent")
        if user not in ("agent", "root"):
            raise OpError(BAD_REQUEST, "user must be agent or root")
        return As(AGENT_UID if user == "agent" and self._switch_user else None)

    def put(self, call: Call) -> None:
        """Write a file that comes as DATA; it appears under its name only when whole."""
        path, user = call.path("path"), self._as(call)
        mode = call.integer("mode", 0o644, 0, 0o7777)
        directory, name = os.path.split(path)
        if name in ("", ".", ".."):
            raise OpError(IS_DIRECTORY, f"{path} does not name a file")
        temporary = f"{directory}/.{name[:200]}.vb{call.stream}"
        try:
            with user:
                if call.flag("parents"):
                    os.makedirs(directory, 0o755, exist_ok=True)
                if os.path.isdir(path):
                    raise OpError(IS_DIRECTORY, f"{path} is a directory")
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(temporary, flags, 0o600)
                try:
                    os.fchmod(fd, mode)
                except OSError:
                    os.close(fd)
                    os.unlink(temporary)
                    raise
        except OSError as error:
            raise os_error(error, path) from None
        call.handler = _Put(call, user, fd, temporary, path)

    def get(self, call: Call) -> None:
        """Send a regular file's bytes from `offset`, at most `limit` of them."""
        path, user = call.path("path"), self._as(call)
        offset = call.integer("offset", 0, 0, 1 << 62)
        limit = call.integer("limit", 1 << 62, 0, 1 << 62)
        try:
            with user:
                # Non-blocking: a FIFO or a device must not hold PID 1.
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, path) from None
        if not st.S_ISREG(os.fstat(fd).st_mode):
            kind = os.fstat(fd).st_mode
            os.close(fd)
            raise OpError(IS_DIRECTORY if st.S_ISDIR(kind) else NOT_REGULAR, f"{path} is not a regular file")
        os.lseek(fd, offset, os.SEEK_SET)
        handler = _Get(call, fd, limit, path)
        call.handler = handler
        handler.on_room()

    def stat(self, call: Call) -> dict[str, Any]:
        """Facts on a path; the link itself, not its target."""
        path = call.path("path")
        try:
            with self._as(call):
                return _facts(os.lstat(path))
        except OSError as error:
            raise os_error(error, path) from None

    def mkdir(self, call: Call) -> dict[str, Any]:
        """Make a directory; with `parents`, those above it too, and none is an error if it exists."""
        path, mode = call.path("path"), call.integer("mode", 0o755, 0, 0o7777)
        try:
            with self._as(call):
                if call.flag("parents"):
                    os.makedirs(path, mode, exist_ok=True)
                else:
                    os.mkdir(path, mode)
        except OSError as error:
            raise os_error(error, path) from None
        return {}

    def list(self, call: Call) -> dict[str, Any]:
        """A directory's entries, sorted within each directory; `recursive` follows no links."""
        path, recursive = call.path("path"), call.flag("recursive")
        entries: list[dict[str, Any]] = []
        try:
            with self._as(call):
                truncated = _walk(path, "", recursive, entries, [0])
        except OSError as error:
            raise os_error(error, path) from None
        return {"entries": entries, "truncated": truncated}

    def remove(self, call: Call) -> dict[str, Any]:
        """Remove a file, a link, an empty directory, or with `recursive` a tree."""
        path, recursive = call.path("path"), call.flag("recursive")
        name = os.path.basename(path.rstrip("/"))
        if not name or name in (".", ".."):
            raise OpError(BAD_REQUEST, f"{path} cannot be removed")
        try:
            with self._as(call):
                parent = os.open(os.path.dirname(path.rstrip("/")), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    _remove(parent, name, recursive, 0)
                finally:
                    os.close(parent)
        except OSError as error:
            raise os_error(error, path) from None
        return {}


def _facts(info: os.stat_result) -> dict[str, Any]:
    return {
        "type": _KINDS.get(st.S_IFMT(info.st_mode), "other"),
        "size": info.st_size,
        "mode": st.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
        "mtime": info.st_mtime,
    }


def _walk(path: str, prefix: str, recursive: bool, entries: list[dict[str, Any]], size: list[int]) -> bool:
    """Append the entries below `path`; True if a bound cut the listing short."""
    with os.scandir(path) as scan:
        found = []
        for item in scan:
            found.append(item)
            if len(found) > MAX_ENTRIES:
                break
    for item in sorted(found, key=lambda entry: entry.name):
        name = prefix + item.name
        # Names are bytes; what is not UTF-8 is shown escaped, since the wire carries text.
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        size[0] += len(shown) * 2 + 110
        if len(entries) >= MAX_ENTRIES or size[0] > MAX_LISTING:
            return True
        try:
            info = item.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        entries.append({"name": shown, **_facts(info)})
        if recursive and st.S_ISDIR(info.st_mode):
            if name.count("/") >= MAX_DEPTH:
                return True
            try:
                if _walk(f"{path}/{item.name}", name + "/", True, entries, size):
                    return True
            except (PermissionError, FileNotFoundError):
                continue
    return False


def _remove(parent: int, name: str, recursive: bool, depth: int) -> None:
    """Remove `name` in the open directory `parent`; by descriptors, so that no swapped link leads elsewhere."""
    if not st.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    if recursive and depth < MAX_DEPTH:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for child in os.listdir(fd):
                _remove(fd, child, True, depth + 1)
        finally:
            os.close(fd)
    os.rmdir(name, dir_fd=parent)


class _Put(Handler):
    __slots__ = ("_call", "_fd", "_path", "_size", "_temporary", "_user")

    def __init__(self, call: Call, user: As, fd: int, temporary: str, path: str) -> None:
        self._call, self._user, self._fd, self._temporary, self._path = call, user, fd, temporary, path
        self._size = 0

    def on_data(self, channel: int, payload: bytes) -> None:
        try:
            rest: memoryview | bytes = payload
            while rest:
                rest = memoryview(rest)[os.write(self._fd, rest) :]
        except OSError as error:
            self._discard()
            raise os_error(error, self._path) from None
        self._size += len(payload)
        self._call.grant(channel, len(payload))

    def on_end(self, channel: int) -> None:
        try:
            with self._user:
                os.rename(self._temporary, self._path)
        except OSError as error:
            self._discard()
            raise os_error(error, self._path) from None
        os.close(self._fd)
        self._fd = -1
        self._call.reply({"size": self._size})

    def on_cancel(self, hard: bool) -> None:
        self._discard()
        self._call.fail(OpError(CANCELLED, f"writing {self._path} was cancelled"))

    def _discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            try:
                with self._user:
                    os.unlink(self._temporary)
            except OSError:
                pass  # the agent removed it, or its directory


class _Get(Handler):
    __slots__ = ("_call", "_fd", "_left", "_path", "_size")

    def __init__(self, call: Call, fd: int, limit: int, path: str) -> None:
        self._call, self._fd, self._left, self._path = call, fd, limit, path
        self._size = 0

    def on_room(self) -> None:
        while self._fd >= 0:
            room = self._call.room(0) if self._left else 1
            if not room:
                return
            try:
                data = os.read(self._fd, min(room, self._left))
            except OSError as error:
                self._close()
                raise os_error(error, self._path) from None
            if not data:
                self._close()
                self._call.end(0)
                self._call.reply({"size": self._size})
                return
            self._size += len(data)
            self._left -= len(data)
            self._call.send(0, data)

    def on_cancel(self, hard: bool) -> None:
        self._close()
        self._call.fail(OpError(CANCELLED, f"reading {self._path} was cancelled"))

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
