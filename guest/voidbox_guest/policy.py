"""What the agent may execute and how much it may use, enforced by the kernel on it and on all its children.

The allowlist is a Landlock ruleset that handles the execute right alone (landlock(7)), made once per policy and
entered by every agent command between fork and exec. Known limits, stated in SECURITY.md: Landlock does not see
code that an allowed program reads and runs itself (an interpreter, the dynamic loader given a path), nor an exec
from a memfd.
"""

from __future__ import annotations

import os
import resource

from wire.protocol import BAD_REQUEST, NOT_FOUND, UNSUPPORTED

from . import kernel
from .calls import Call, OpError, os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
DEFAULT = ("/usr/",)
LOADERS = (
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
)
"""ELF interpreters: the kernel needs the execute right on them to start any dynamic program."""

_LIMITS = {
    "open_files": (resource.RLIMIT_NOFILE, 1),
    "processes": (resource.RLIMIT_NPROC, 1),
    "file_mb": (resource.RLIMIT_FSIZE, 1 << 20),
    "core_mb": (resource.RLIMIT_CORE, 1 << 20),
}


def rlimits(given: object) -> dict[int, int]:
    """``{RLIMIT_*: value}`` from the names of the specification's Rlimits."""
    if type(given) is not dict:
        raise OpError(BAD_REQUEST, "rlimits must be an object")
    limits = {}
    for name, value in given.items():
        if name not in _LIMITS or type(value) is not int or not 0 <= value < 1 << 32:
            raise OpError(BAD_REQUEST, f"the limit {str(name)[:40]!r} is unknown or out of range")
        number, unit = _LIMITS[name]
        limits[number] = value * unit
    return limits


def find_program(name: str, path: str = PATH) -> str | None:
    """The first executable file called `name` on `path`, or None."""
    for directory in path.split(":"):
        candidate = f"{directory}/{name}"
        if directory and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


class Policy:
    """The policy in force. `enforced` False (tests on a host without Landlock) keeps rlimits only."""

    def __init__(self, *, enforced: bool = True) -> None:
        self._enforced = enforced
        self._ruleset = -1
        self._allowed: list[str] = []
        self.limits: dict[int, int] = {resource.RLIMIT_CORE: 0}

    def operation(self, call: Call) -> dict[str, Any]:
        """Replace the policy; commands already running keep theirs. Nothing changes on an error."""
        commands = call.request.get("commands")
        if commands is None:
            wanted = list(DEFAULT)
        elif type(commands) is list and len(commands) <= 1024 and all(type(c) is str for c in commands):
            wanted = commands
        else:
            raise OpError(BAD_REQUEST, "commands must be null or a list of at most 1024 strings")
        limits = rlimits(call.request.get("rlimits", {}))
        self.set_commands(wanted)
        self.limits = {resource.RLIMIT_CORE: 0, **limits}
        return {"landlock": kernel.landlock_abi() if self._enforced else 0}

    def set_commands(self, wanted: list[str]) -> None:
        """Allow `wanted`: names on PATH, absolute files, or directories that end in ``/``."""
        paths, missing = [], []
        for entry in wanted:
            path = entry if entry.startswith("/") else find_program(entry)
            if path is None or not os.path.exists(path) or entry.endswith("/") is not os.path.isdir(path):
                missing.append(entry)
            else:
                paths.append(os.path.realpath(path) + ("/" if entry.endswith("/") else ""))
        if missing:
            raise OpError(NOT_FOUND, f"the policy allows what is not in this image: {', '.join(missing)[:500]}")
        self._allowed = paths
        if not self._enforced:
            return
        if not kernel.landlock_abi():
            raise OpError(UNSUPPORTED, "the guest kernel has no Landlock, so no command allowlist can be enforced")
        try:
            ruleset = kernel.landlock_execute_only(paths + [p for p in LOADERS if os.path.exists(p)])
        except OSError as error:
            raise os_error(error, str(error.filename)) from None
        if self._ruleset >= 0:
            os.close(self._ruleset)
        self._ruleset = ruleset

    def enter(self) -> None:
        """Bind the calling process, for ever. Called between fork and exec, last of all."""
        kernel.no_new_privileges()
        if self._ruleset >= 0:
            kernel.landlock_restrict(self._ruleset)

    def refusal(self, path: str) -> str | None:
        """Why executing `path` is denied, as one sentence, or None if the allowlist is not the reason."""
        if self._ruleset < 0:
            return None
        real = os.path.realpath(path)
        if not self._covers(real):
            return f"the command allowlist of this stage does not name {path}; add it to the policy's commands"
        interpreter = _interpreter(real)
        if interpreter and not self._covers(os.path.realpath(interpreter)):
            return f"{path} is a script for {interpreter}, which the command allowlist of this stage does not name"
        return None

    def _covers(self, real: str) -> bool:
        return any(real.startswith(a) if a.endswith("/") else real == a for a in self._allowed)


def _interpreter(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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
