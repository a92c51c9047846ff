"""Templates in memory: unpacked into a tmpfs, checked on the way, shared by this user's processes. Blocking.

    <shm>/t/<key>/memory, scratch, state    what clones are copied from, or map
    <shm>/t/<key>/loaded                    written last: what the three looked like then
    <shm>/t/<key>.load                      flock(2), exclusive: held while loading or removing
    <shm>/t/<key>.use                       flock(2), shared: held by who has them open

A process that has them open keeps them whatever happens to the names. The kernel lets go of a dead process's
locks, so the next one to look knows whether anybody is left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError
from voidbox_lab.machines.templates import pages
from voidbox_lab.machines.templates.store import MEMORY, SCRATCH, STATE, Template, TemplateStore

LOCK_TIMEOUT_S = 60.0
REMOVE_S = 0.5
"""Seconds to wait for the lock in order to remove: of two that let go at once, each holds it for a moment."""
NAMES = ("memory", "scratch", "state")
MARK = "loaded"
MARGIN = 64 << 20
"""Bytes of the tmpfs that are left to others."""


class NoRoom(ProviderError):
    """The tmpfs has no room; a box can still boot without it."""


@dataclass
class Resident:
    """A loaded template; `close` it. Good for any number of clones at once."""

    template: Template
    path: Path
    """Its directory, while the names last."""
    _files: dict[str, int]
    _use: int
    _closed: bool = field(default=False, init=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def open(self, name: str) -> int:
        """A new descriptor, at the beginning, of ``memory``, ``scratch`` or ``state``; the caller closes it.

        Raises:
            ProviderError: it was closed, by whoever found it broken (cause ``shm``).
        """
        # Else a close in another thread comes in between, and the number is another file's.
        with self._guard:
            if self._closed:
                raise ProviderError(f"The template {self.template.digest} was let go; try again.", cause="shm")
            return os.open(f"/proc/self/fd/{self._files[name]}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def intact(self) -> bool:
        """The files are as they were loaded, as far as size and time of the last change tell."""
        with self._guard:
            return not self._closed and _read_mark(self.path) == _mark(self.template, self._files)

    def close(self) -> None:
        """Let go; the last user removes it from memory. Idempotent."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            for fd in self._files.values():
                os.close(fd)
        fcntl.flock(self._use, fcntl.LOCK_UN)
        os.close(self._use)
        _remove_if_unused(self.path)


def load(store: TemplateStore, template: Template, shm: Path) -> Resident:
    """`template` in memory; loaded, or found loaded and unchanged.

    Raises:
        pages.Damaged: its files are not what their digests say, or gone.
        NoRoom: the tmpfs is full.
        ProviderError: it cannot be used at all (cause ``shm``).
    """
    path = shm / "t" / template.digest
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path, "load", fcntl.LOCK_EX, LOCK_TIMEOUT_S):
            files = _opened(template, path)
            if files is None:
                _unpack(template, path)
                store.touch(template)
                files = _opened(template, path)
            if files is None:
                raise pages.Damaged(f"{path} changed while it was loaded.", cause="template-damaged")
            use = _lock(path, "use", fcntl.LOCK_SH, LOCK_TIMEOUT_S)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}:
            raise NoRoom(
                f"{shm} has no room for a template; free some, or make it larger.", cause="shm-full"
            ) from error
        if store.find(template.digest) is None:
            raise pages.Damaged(f"{template.path} was removed meanwhile.", cause="template-damaged") from error
        raise ProviderError(f"{error.filename or path} cannot be used: {error.strerror}.", cause="shm") from error
    return Resident(template, path, files, use)


def remove_unused(shm: Path) -> None:
    """Remove what dead processes left loaded."""
    with contextlib.suppress(OSError):
        for path in (shm / "t").glob("*.load"):
            _remove_if_unused(path.with_suffix(""))


def _remove_if_unused(path: Path) -> None:
    with (
        contextlib.suppress(OSError, ProviderError),
        _locked(path, "load", fcntl.LOCK_EX, REMOVE_S),
        _locked(path, "use", fcntl.LOCK_EX, 0),
    ):
        shutil.rmtree(path, ignore_errors=True)


def check_room(shm: Path, needed: int) -> None:
    """`needed` bytes fit in the tmpfs.

    Raises:
        NoRoom: they do not.
        ProviderError: there is no such directory (cause ``shm``).
    """
    try:
        stat = os.statvfs(shm)
    except OSError as error:
        raise ProviderError(f"{shm} cannot be used: {error.strerror}.", cause="shm") from error
    free = stat.f_bavail * stat.f_frsize
    if free < needed + MARGIN:
        raise NoRoom(
            f"{shm} has {free >> 20} MB free and a warm start takes {(needed + MARGIN) >> 20} MB; make it larger.",
            cause="shm-full",
        )


def _unpack(template: Template, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    # The file of pages is about as large as what it becomes.
    check_room(path.parent, template.size)
    path.mkdir(mode=0o700)
    try:
        pages.unpack(template.path / MEMORY, path / "memory", template.files[MEMORY].sha256)
        pages.unpack(template.path / SCRATCH, path / "scratch", template.files[SCRATCH].sha256)
        state = (template.path / STATE).read_bytes()
        if hashlib.sha256(state).hexdigest() != template.files[STATE].sha256:
            raise pages.Damaged(f"{template.path / STATE} is not what its digest says.", cause="template-damaged")
        (path / "state").touch(0o600)
        (path / "state").write_bytes(state)
        mark = _mark(template, {name: path / name for name in NAMES})
        (path / MARK).write_text(json.dumps(mark), encoding="ascii")
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _opened(template: Template, path: Path) -> dict[str, int] | None:
    mark = _read_mark(path)
    if mark is None:
        return None
    files: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for name in NAMES:
            files[name] = os.open(path / name, os.O_RDONLY | os.O_CLOEXEC)
        if _mark(template, files) == mark:
            return files
    for fd in files.values():
        os.close(fd)
    return None


def _mark(template: Template, files: Mapping[str, Path] | Mapping[str, int]) -> dict[str, Any]:
    """What `files` look like, and what they were made from: a template made anew has the name of the old one."""
    digests = {name: file.sha256 for name, file in template.files.items()}
    return {"of": digests, "files": {name: _stamp(file) for name, file in files.items()}}


def _stamp(file: Path | int) -> list[int]:
    info = os.fstat(file) if isinstance(file, int) else file.stat()
    return [info.st_ino, info.st_size, info.st_mtime_ns]


def _read_mark(path: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((path / MARK).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) else None


def _lock(path: Path, name: str, how: int, timeout_s: float) -> int:
    """A descriptor that holds flock(2) `how` on ``<path>.<name>``; bounded."""
    fd = os.open(path.with_suffix(f".{name}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.005)
                continue
            os.close(fd)
            raise ProviderError(
                f"Another process has been at the template {path.name} for {timeout_s:g} s; stop it.", cause="shm"
            ) from None
        else:
            return fd


@contextlib.contextmanager
def _locked(path: Path, name: str, how: int, timeout_s: float) -> Iterator[None]:
    fd = _lock(path, name, how, timeout_s)
    try:
        yield
    finally:
        os.close(fd)
