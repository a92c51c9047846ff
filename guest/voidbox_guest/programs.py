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
from .lookup import View

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
"""Options of ld.so(8) that take the next argument, or, with musl, what follows a ``=``."""
_WITHOUT_VALUE = (b"--list", b"--verify", b"--inhibit-cache")
_MAX_INTERPRETERS = 8
"""Scripts that are interpreted by scripts; the kernel stops at 5 (fs/exec.c)."""


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

    `real` tells the real path of one that is named, or raises OpError. Raises OpError when one is not there.
    """

    __slots__ = ("_listed", "_real_loaders", "loaders", "paths")

    def __init__(
        self,
        wanted: list[str] | tuple[str, ...] | None = None,
        real: Callable[[str], str] = os.path.realpath,
    ) -> None:
        paths, missing = [], []
        for entry in programs() if wanted is None else wanted:
            path = entry if entry.startswith("/") else find_program(entry)
            if path is None or not os.path.exists(path) or entry.endswith("/") is not os.path.isdir(path):
                missing.append(entry)
            else:
                paths.append(real(path).rstrip("/") + ("/" if entry.endswith("/") else ""))
        if missing:
            raise OpError(NOT_FOUND, f"the policy allows what is not in this image: {', '.join(missing)[:500]}")
        self.paths = paths
        """Real paths; directories end in ``/``."""
        self.loaders = [path for path in LOADERS if os.path.exists(path)]
        self._real_loaders = {os.path.realpath(path) for path in self.loaders}
        self._listed = wanted is not None

    def refusal(
        self,
        path: str,
        view: View | None = None,
        arguments: Callable[[], list[bytes]] | None = None,
        directory: int | None = None,
    ) -> str | None:
        """Why executing `path` is denied, as one sentence, or None if this allowlist is not the reason.

        Args:
            view: whose; by default this process's.
            arguments: what it is given, its own name first, where that can be known; called if need be.
            directory: the descriptor that it is relative to; see `View.locate`.

        Raises OSError where nobody can tell; whoever is to be kept from it must not go on then.
        """
        view = view or View()
        found = self._look(view, path, directory)
        if found is None or not found[1]:
            return None
        real, _, interpreter = found
        if not self._covers(real):
            return f"the command allowlist of this stage does not name {real}; add it to the policy's commands"
        if arguments is not None and real in self._real_loaders:
            return self._loaded(view, real, arguments())
        return self._interpreted(view, real, interpreter)

    def _loaded(self, view: View, loader: str, arguments: list[bytes]) -> str | None:
        """The refusal of what the dynamic loader is to run."""
        program = os.fsdecode(loaded(arguments) or b"")
        try:
            # Without a slash it is looked for along the library path, not in the working directory.
            found = self._look(view, program) if "/" in program or not self._listed else None
        except OSError:
            found = None
        if found is None and not self._listed:
            return None  # noexec and Landlock keep all that the agent may have meant from being mapped
        if found is not None and self._covers(found[0]):
            if self._listed and found[0] in self._real_loaders:
                return f"{loader} is to run {found[0]}, a dynamic loader, which would run anything"
            return None
        what = found[0] if found else program or "what cannot be told"
        return f"{loader} is to run {what}, which the command allowlist of this stage does not name"

    def _interpreted(self, view: View, script: str, interpreter: str | None) -> str | None:
        """The refusal of a script, for its interpreter or for the interpreter's own."""
        for _ in range(_MAX_INTERPRETERS):
            if interpreter is None:
                return None
            what = f"{script} is a script for {interpreter}, which"
            found = self._look(view, interpreter)
            if found is None or not self._covers(found[0]):
                return f"{what} the command allowlist of this stage does not name"
            if found[0] in self._real_loaders:
                return f"{what} is the dynamic loader and would run anything"
            script, interpreter = found[0], found[2]
        return None  # nor does the kernel go on

    def _look(self, view: View, path: str, directory: int | None = None) -> tuple[str, bool, str | None] | None:
        """Of a regular file: its real path, whether anybody may execute it, and, for a list of commands, its
        interpreter if it is a script. None for anything else. Raises OSError."""
        fd = view.locate(path, directory)
        try:
            mode = os.fstat(fd).st_mode
            if not S_ISREG(mode):
                return None
            name = f"/proc/self/fd/{fd}"
            return os.readlink(name), bool(mode & 0o111), _interpreter(name) if self._listed else None
        finally:
            os.close(fd)

    def _covers(self, real: str) -> bool:
        return any(real.startswith(a) if a.endswith("/") else real == a for a in self.paths)

    def within(self, directory: str) -> bool:
        """Whether anything in `directory` is allowed."""
        return any(
            a.startswith(directory + "/") or (a.endswith("/") and directory.startswith(a)) for a in self.paths
        )


def loaded(arguments: list[bytes]) -> bytes | None:
    """The program that a dynamic loader runs if it is given `arguments` (ld.so(8)); None: there is none, or none
    is found in what is here of them."""
    rest = iter(arguments[1:])
    for argument in rest:
        if argument in _WITH_VALUE:
            next(rest, None)
        elif argument == b"--":
            return next(rest, None)
        elif not argument.startswith(b"--"):
            return argument
        elif argument not in _WITHOUT_VALUE and argument.partition(b"=")[0] not in _WITH_VALUE:
            return None
    return None


def _interpreter(path: str) -> str | None:
    """The interpreter that a script names, read as the kernel does (fs/binfmt_script.c). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        head = os.read(fd, 256)
    finally:
        os.close(fd)
    if not head.startswith(b"#!"):
        return None
    name = head[2:].split(b"\n", 1)[0].strip(b" \t")
    for end in (b" ", b"\t", b"\0"):
        name = name.split(end, 1)[0]
    return os.fsdecode(name) if name else None
