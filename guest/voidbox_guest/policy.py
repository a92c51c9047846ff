"""What the agent may do, enforced by the kernel on it and on all its children; see docs/policy.md.

Each policy becomes one set of `Rules`: a Landlock ruleset, a seccomp filter, limits, and caps of a control group.
They are made when the policy is set, so that a command enters them by a handful of system calls between fork and
exec.
"""

from __future__ import annotations

import os
import resource

from wire.protocol import AGENT_UID, BAD_REQUEST, NOT_FOUND, UNSUPPORTED

from . import kernel, landlock, seccomp
from .calls import Call, OpError, os_error
from .files import As
from .places import OWN, WORKSPACE, Places
from .programs import Programs
from .syscalls import GROUPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_PATHS = 1024
_DEVICES = (
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
    *("/dev/tty", "/dev/ptmx", "/dev/pts"),
)
"""What any program may write to; /dev/shm is its memory, and /proc guards itself."""
_READABLE = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/dev", "/proc"),
    *("/sys/devices/system", "/sys/fs/cgroup"),
)
"""Programs, libraries, their configuration, and what the kernel says about itself."""

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


class Caps:
    """Bounds on a command's tree: bytes of memory, processes, CPUs; None: no bound of its own."""

    __slots__ = ("cpus", "memory", "pids")

    def __init__(self, given: object) -> None:
        if type(given) is not dict or not given.keys() <= {"memory_mb", "pids", "cpus"}:
            raise OpError(BAD_REQUEST, "caps must be an object with memory_mb, pids and cpus")
        memory, pids, cpus = given.get("memory_mb"), given.get("pids"), given.get("cpus")
        if not all(v is None or (type(v) is int and 0 < v < 1 << 32) for v in (memory, pids)):
            raise OpError(BAD_REQUEST, "memory_mb and pids must be null or positive integers")
        if not (cpus is None or (type(cpus) in (int, float) and 0 < cpus < 4096)):
            raise OpError(BAD_REQUEST, "cpus must be null or a positive number")
        self.memory: int | None = None if memory is None else memory << 20
        self.pids: int | None = pids
        self.cpus: float | None = cpus


class Rules:
    """One policy, ready to be entered. Commands that began under it keep it."""

    __slots__ = ("caps", "filter", "limits", "opened", "programs", "ruleset")

    def __init__(
        self,
        programs: Programs | None = None,
        *,
        ruleset: int = -1,
        code: bytes = b"",
        opened: tuple[str, ...] = (),
        limits: dict[int, int] | None = None,
        caps: Caps | None = None,
    ) -> None:
        self.programs = programs or Programs(("/",))
        self.ruleset, self.filter, self.opened = ruleset, code, opened
        self.limits = {resource.RLIMIT_CORE: 0, **(limits or {})}
        self.caps = caps or Caps({})

    def with_limits(self, limits: dict[int, int], caps: Caps) -> Rules:
        """The same with other limits and caps; it shares the ruleset."""
        return Rules(
            self.programs,
            ruleset=self.ruleset,
            code=self.filter,
            opened=self.opened,
            limits=limits,
            caps=caps,
        )


class Policy:
    """The policy in force. `enforced` False (tests on a host without Landlock) keeps rlimits only."""

    def __init__(self, places: Places, *, enforced: bool = True) -> None:
        self.places = self._places = places
        self._enforced = enforced
        self.rules = Rules()
        self._is_default = False

    def operation(self, call: Call) -> dict[str, Any]:
        """Replace the policy; commands already running keep theirs. Nothing changes on an error."""
        commands = _strings(call, "commands")
        opened = _strings(call, "syscalls") or []
        if not set(opened) <= GROUPS.keys():
            raise OpError(BAD_REQUEST, "syscalls names a group that this guest agent does not know")
        read, write = _paths(call, "read"), _paths(call, "write")
        limits, caps = rlimits(call.request.get("rlimits", {})), Caps(call.request.get("caps", {}))
        plain = commands is read is write is None and not opened
        if plain and self._is_default and not self._places.disks():
            # What a template was saved with, so that most boxes have nothing to make.
            self.rules = self.rules.with_limits(limits, caps)
            return self._told()
        programs = Programs() if commands is None else Programs(commands, self._places.real)
        self._is_default = False
        self.set(programs, read=read, write=write, opened=tuple(opened), limits=limits, caps=caps)
        return self._told()

    def _told(self) -> dict[str, Any]:
        return {"landlock": landlock.abi() if self._enforced else 0, "seccomp": bool(self.rules.filter)}

    def set_default(self) -> None:
        """The policy for who says none, and most do. Raises OpError."""
        if self._enforced:
            self.set(Programs())
            self._is_default = True

    def set(
        self,
        programs: Programs,
        *,
        read: list[str] | None = None,
        write: list[str] | None = None,
        opened: tuple[str, ...] = (),
        limits: dict[int, int] | None = None,
        caps: Caps | None = None,
    ) -> None:
        """Put a policy in force.

        Args:
            read: what may be read, besides `_READABLE` and the agent's own; None: anything.
            write: what may be written, besides `_DEVICES`; None: the agent's own and the writable disks.

        Raises:
            OpError: a path is not there, or the kernel has no Landlock.
        """
        rules = Rules(programs if self._enforced else None, opened=opened, limits=limits, caps=caps)
        for path in write or ():
            if _is_own(path):
                self._make(path)
        if self._enforced:
            if not landlock.abi():
                raise OpError(UNSUPPORTED, "the guest kernel has no Landlock, so the policy cannot be enforced")
            handled, granted = self._granted(programs, read, write)
            try:
                rules.ruleset = landlock.ruleset(handled, granted)
            except OSError as error:
                raise os_error(error, str(error.filename)) from None
            # What memory its supervisor would have to wait for, it must not read.
            rules.filter = seccomp.program(opened, ask_exec=not {"mount", "userfaultfd"} & set(opened))
        try:
            self._places.close(programs)
            if self._places.privileged:
                # By /proc/PID/mem too, which the filter does not see.
                kernel.share_memory("ptrace" in opened)
        except OSError as error:
            if rules.ruleset >= 0:
                os.close(rules.ruleset)
            raise os_error(error, str(error.filename)) from None
        before, self.rules = self.rules, rules
        if before.ruleset >= 0:
            os.close(before.ruleset)

    def _granted(
        self, programs: Programs, read: list[str] | None, write: list[str] | None
    ) -> tuple[int, dict[str, int]]:
        """The rights a ruleset is to handle, and what it grants by path."""
        handled, granted = landlock.EXECUTE | landlock.WRITE, dict.fromkeys(programs.paths, landlock.EXECUTE)

        def grant(paths: Any, rights: int, *, named: bool = False) -> None:
            for path in paths:
                if os.path.exists(path):
                    path = self._places.real(path) if named else path
                    granted[path] = granted.get(path, 0) | rights
                elif named:
                    raise OpError(NOT_FOUND, f"the policy names {path}, which is not in this box")

        grant(programs.loaders, landlock.EXECUTE)
        grant((*_DEVICES, "/dev/shm", "/proc"), landlock.WRITABLE)
        writable = [place for place, read_only in self._places.disks() if not read_only]
        if write is None:
            grant((*WORKSPACE, *writable), landlock.WRITABLE)
        else:
            grant(write, landlock.WRITABLE, named=True)
        if read is not None:
            handled |= landlock.READ
            grant((*_READABLE, *OWN, *writable, *programs.paths), landlock.READ)
            grant((*read, *(write or ())), landlock.READ, named=True)
        return handled, granted

    def _make(self, path: str) -> None:
        """A directory at `path`, which is the agent's own, if nothing is there. Raises OpError."""
        try:
            if not os.path.lexists(path):
                # As the agent, who may have laid out links there.
                with As(AGENT_UID if self._places.privileged else None):
                    os.makedirs(path)
        except OSError as error:
            raise os_error(error, path) from None

    def enter(self) -> int:
        """Bind the calling process, for ever. Called between fork and exec, last of all.

        Returns the descriptor by which the supervisor listens, close-on-exec; -1 if nothing is to be told.
        """
        kernel.no_new_privileges()
        if self.rules.ruleset >= 0:
            landlock.restrict(self.rules.ruleset)
        return seccomp.install(self.rules.filter) if self.rules.filter else -1


def _is_own(path: str) -> bool:
    return any(path.startswith(place + "/") for place in WORKSPACE)


def _strings(call: Call, key: str) -> list[str] | None:
    """A field that is null or a list of strings."""
    value = call.request.get(key)
    if value is None or (
        type(value) is list and len(value) <= MAX_PATHS and all(type(v) is str and "\0" not in v for v in value)
    ):
        return value
    raise OpError(BAD_REQUEST, f"{key} must be null or a list of at most {MAX_PATHS} strings without NUL")


def _paths(call: Call, key: str) -> list[str] | None:
    """A field that is null or a list of normal absolute paths."""
    value = _strings(call, key)
    if any(not path.startswith("/") or os.path.normpath(path) != path for path in value or ()):
        raise OpError(BAD_REQUEST, f"{key} must hold absolute, normal paths")
    return value
