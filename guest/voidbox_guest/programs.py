"""Which programs may be executed, and why one may not, in words.

Landlock enforces it; what is here finds the rule behind a refusal. It also decides what Landlock cannot: a program
that is given to the dynamic loader as an argument, for the kernel, is no more than a file that the loader reads.
"""

from __future__ import annotations

import os
from stat import S_ISREG

from wire.protocol import NOT_FOUND

from .calls import OpError
from .image import PATH, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LOADERS = (
    "/usr/lib/voidbox/rt/ld.so",
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
)
"""ELF interpreters: the kernel needs the execute right on them to start any dynamic program."""
_WITH_VALUE = (
    *(b"--library-path", b"--inhibit-rpath", b"--audit", b"--preload", b"--argv0"),
    *(b"--glibc-hwcaps-prepend", b"--glibc-hwcaps-mask"),
)
"""Options of ld.so(8) that take the next argument."""


def find_program(name: str, path: str = PATH) -> str | None:
    """The first executable file called `name` on `path`, or None."""
    for directory in path.split(":"):
        candidate = f"{directory}/{name}"
        if directory and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


class Programs:
    """The programs that a policy allows: names on PATH, absolute files, or directories that end in ``/``; None:
    all of the image's own.

    Raises OpError when one is not there.
    """

    __slots__ = ("_listed", "_real_loaders", "loaders", "paths")

    def __init__(self, wanted: list[str] | tuple[str, ...] | None = None) -> None:
        paths, missing = [], []
        for entry in programs() if wanted is None else wanted:
            path = entry if entry.startswith("/") else find_program(entry)
            if path is None or not os.path.exists(path) or entry.endswith("/") is not os.path.isdir(path):
                missing.append(entry)
            else:
                paths.append(os.path.realpath(path).rstrip("/") + ("/" if entry.endswith("/") else ""))
        if missing:
            raise OpError(NOT_FOUND, f"the policy allows what is not in this image: {', '.join(missing)[:500]}")
        self.paths = paths
        """Real paths; directories end in ``/``."""
        self.loaders = [path for path in LOADERS if os.path.exists(path)]
        self._real_loaders = {os.path.realpath(path) for path in self.loaders}
        self._listed = wanted is not None

    def refusal(self, path: str, arguments: Callable[[], list[bytes]] | None = None, cwd: str = "") -> str | None:
        """Why executing `path` is denied, as one sentence, or None if this allowlist is not the reason.

        Args:
            path: absolute; also one of somebody else's working directory, ``/proc/PID/cwd/…``.
            arguments: what it is given, its own name first, where that can be known; called if need be.
            cwd: where it is to run, for arguments that are relative paths.
        """
        found = _resolve(path)
        if found is None:
            return None
        real, executable = found
        if not executable:
            return None
        if not self._covers(real):
            return f"the command allowlist of this stage does not name {real}; add it to the policy's commands"
        if arguments is not None and real in self._real_loaders:
            return self._loaded(real, cwd, arguments())
        interpreter = _interpreter(real) if self._listed else None
        if interpreter and not self._covers(os.path.realpath(interpreter)):
            return f"{real} is a script for {interpreter}, which the command allowlist of this stage does not name"
        return None

    def _loaded(self, loader: str, cwd: str, arguments: list[bytes]) -> str | None:
        """The refusal of what the dynamic loader is to run."""
        rest = iter(arguments[1:])
        for argument in rest:
            if argument in _WITH_VALUE:
                next(rest, None)
            elif not argument.startswith(b"--"):
                found = _resolve(os.path.join(cwd, os.fsdecode(argument)))
                if found is None or self._covers(found[0]):
                    return None
                return f"{loader} is to run {found[0]}, which the command allowlist of this stage does not name"
        return None

    def _covers(self, real: str) -> bool:
        return any(real.startswith(a) if a.endswith("/") else real == a for a in self.paths)

    def within(self, directory: str) -> bool:
        """Whether anything in `directory` is allowed."""
        return any(
            a.startswith(directory + "/") or (a.endswith("/") and directory.startswith(a)) for a in self.paths
        )


def _resolve(path: str) -> tuple[str, bool] | None:
    """The real path of a regular file, and whether anybody may execute it; None for anything else."""
    try:
        # O_PATH: nothing is opened, so that a device or a FIFO in the place of a program has no effect.
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        mode = os.fstat(fd).st_mode
        return (os.readlink(f"/proc/self/fd/{fd}"), bool(mode & 0o111)) if S_ISREG(mode) else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _interpreter(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        line = os.read(fd, 256).split(b"\n", 1)[0]
    except OSError:
        return None
    finally:
        os.close(fd)
    words = line[2:].split() if line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else None
