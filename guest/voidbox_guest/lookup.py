"""What a path means to a thread that is about to execute it, for PID 1, which looks in its place.

Both see the same tree, but for what in /proc depends on who looks: /proc/self, /proc/thread-self and what leads
there, /dev/fd and links of the agent's own among it. Nothing is opened (O_PATH), so that a device or a FIFO in the
place of a program has no effect.
"""

from __future__ import annotations

import ctypes
import os
from errno import EACCES, ELOOP, ENOSYS
from stat import S_ISLNK

from .kernel import check, syscall

_PATH = os.O_PATH | os.O_CLOEXEC
_OPENAT2, _NO_MAGIC_LINKS = 437, 0x02  # openat2(2)
_PROC_ROOT = 1
"""The inode of the root of a proc file system (linux/proc_fs.h)."""
MAX_STEPS = 256
"""Names and links on the way through /proc. The kernel's bound is on links alone, but PID 1 has other work."""


class View:
    """Paths as the thread `tid` sees them from its working directory; 0: as this process does from `cwd`."""

    __slots__ = ("_cwd", "_tid")

    def __init__(self, tid: int = 0, cwd: str = "/") -> None:
        self._tid, self._cwd = tid, f"/proc/{tid}/cwd" if tid else cwd

    def locate(self, path: str, directory: int | None = None) -> int:
        """An O_PATH descriptor of `path`, or of what it leads to; relative to the descriptor `directory` of the
        thread if that is given.

        An empty path is the directory itself (AT_EMPTY_PATH, execveat(2)). Raises OSError.
        """
        base = self._cwd if directory is None else f"/proc/{self._tid}/fd/{directory}"
        start = os.open("/" if path.startswith("/") else base, _PATH)
        try:
            if not path:
                return os.dup(start)
            if not self._tid:
                return os.open(path, _PATH, dir_fd=start)
            try:
                return _open_alike(path, start)
            except OSError as error:
                # EACCES: a link of the agent's in /tmp, which root does not follow (protected_symlinks, proc(5)).
                if error.errno not in (ELOOP, EACCES, ENOSYS):
                    raise
            return self._walk(path, start)
        finally:
            os.close(start)

    def _walk(self, path: str, start: int) -> int:
        """As `locate`, name by name."""
        rest = path.split("/")[::-1]
        here = os.dup(start)
        try:
            for _ in range(MAX_STEPS):
                while rest and rest[-1] in ("", "."):
                    rest.pop()
                if not rest:
                    return os.dup(here)
                name = rest.pop()
                target = self._target(name, here)
                if target is not None:
                    rest += target.split("/")[::-1]
                    name = "/" if target.startswith("/") else "."
                before, here = here, os.open(name, _PATH, dir_fd=here)
                os.close(before)
            raise OSError(ELOOP, os.strerror(ELOOP), path)
        finally:
            os.close(here)

    def _target(self, name: str, directory: int) -> str | None:
        """What the link `name` says to the thread; None: it is no link, or leads everybody to the same."""
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not S_ISLNK(info.st_mode):
            return None
        if info.st_dev == os.stat("/proc").st_dev:
            if os.fstat(directory).st_ino != _PROC_ROOT:
                return None  # to what some process has open
            if name in ("self", "thread-self"):
                process = _process(self._tid)
                return process if name == "self" else f"{process}/task/{self._tid}"
        return os.readlink(name, dir_fd=directory)


def _open_alike(path: str, directory: int) -> int:
    """An O_PATH descriptor of what `path` is to everybody. Raises OSError: ELOOP where it may not be."""
    # struct open_how: flags, mode, resolve.
    how = b"".join(value.to_bytes(8, "little") for value in (_PATH, 0, _NO_MAGIC_LINKS))
    return check(syscall(_OPENAT2, directory, os.fsencode(path), how, ctypes.c_size_t(len(how))), path)


def _process(tid: int) -> str:
    """The number of a thread's process. Raises OSError: it is gone."""
    with open(f"/proc/{tid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Tgid:"):
                return line.split()[1].decode()
    raise ProcessLookupError(tid)
