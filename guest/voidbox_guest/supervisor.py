"""Answers for a command tree's denied system calls and its execve(2), as seccomp_unotify(2) asks.

A denied call fails with EPERM and is told. For execve the path is read out of the caller's memory, judged by the
allowlist, and let go on or refused with EACCES. The caller can change that memory after it was read: what binds is
Landlock and noexec, which the kernel asks when the call goes on. This is for telling, and for what those two do
not see (the program that the dynamic loader is given). What cannot be read or found does not go on either.

PID 1 does this in its event loop, one notification a round: a tree that asks without pause gets its turn like
anything else, and waits for its answers itself. Nothing here waits for the caller.
"""

from __future__ import annotations

import os
from errno import EACCES, EFAULT, EPERM
from fcntl import ioctl

from . import seccomp
from .calls import printable
from .lookup import View
from .loop import BROKEN, READ
from .syscalls import GROUPS, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .denials import Denials
    from .loop import Loop
    from .policy import Rules

# linux/seccomp.h, with the sizes of struct seccomp_notif and struct seccomp_notif_resp.
_SIZE = 80
_RECEIVE, _SEND, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
_CONTINUE = 1
_AT_FDCWD = 0xFFFFFF9C
MAX_PATH = 4096
MAX_ARGUMENTS = 16
"""Arguments that are looked at, to find what a dynamic loader is to run."""
_INET, _INET6, _RAW = 2, 10, 3
_FAMILIES = {3: "AX25", 15: "KEY", 16: "NETLINK", 17: "PACKET", 31: "BLUETOOTH", 38: "ALG", 40: "VSOCK", 44: "XDP"}

_BY_NUMBER: dict[int, tuple[str, str]] = {}
"""Number to group and name."""


def _table() -> dict[int, tuple[str, str]]:
    if not _BY_NUMBER:
        number = numbers()
        for group, names in GROUPS.items():
            _BY_NUMBER.update({number[name]: (group, name) for name in names if name in number})
        for name in ("clone", "unshare"):
            _BY_NUMBER[number[name]] = ("namespaces", name)
        for name in ("socket", "socketpair"):
            _BY_NUMBER[number[name]] = ("packet-sockets", name)
        for name in ("execve", "execveat"):
            _BY_NUMBER[number[name]] = ("", name)
    return _BY_NUMBER


def prepare() -> None:
    """Make what every supervisor needs, before a template is saved."""
    _table()


class Supervisor:
    """Listens on `listener`, which it owns, until the tree is gone or `close`."""

    __slots__ = ("_denials", "_listener", "_loop", "_rules")

    def __init__(self, loop: Loop, listener: int, rules: Rules, denials: Denials) -> None:
        self._loop, self._listener, self._rules, self._denials = loop, listener, rules, denials
        loop.watch(listener, READ, self._ready)

    def close(self) -> None:
        """Stop. What still asks gets ENOSYS; call it when the tree is dead or about to be."""
        if self._listener >= 0:
            self._loop.forget(self._listener)
            os.close(self._listener)
            self._listener = -1

    def _ready(self, events: int) -> None:
        if events & READ:
            self._answer()
        elif events & BROKEN:  # the last process that had the filter is gone
            self.close()

    def _answer(self) -> None:
        request = bytearray(_SIZE)
        try:
            ioctl(self._listener, _RECEIVE, request, True)
        except OSError:  # it died, or was interrupted, before we looked
            return
        words = memoryview(request).cast("I")
        pid, number = words[2], words[4]
        try:
            error = self._decide(pid, number, request)
        except (OSError, ValueError) as failure:
            # The caller is gone, its memory is not what it says, or the path leads nowhere: the call would fail.
            told = failure.errno if isinstance(failure, OSError) else None
            error = EPERM if _table().get(number, ("x",))[0] else (told or EACCES)
        answer = bytes(request[:8]) + bytes(8)
        answer += (-error).to_bytes(4, "little", signed=True) + (0 if error else _CONTINUE).to_bytes(4, "little")
        try:
            ioctl(self._listener, _SEND, answer)
        except OSError:
            return  # it died meanwhile, or took a signal and will ask again

    def _decide(self, pid: int, number: int, request: bytearray) -> int:
        """The errno for a call, or 0 for letting it go on."""
        arguments = memoryview(request).cast("Q")[4:]
        group, name = _table().get(number, ("unknown", f"call {number}"))
        if not group:
            return self._exec(pid, name, arguments, request)
        subject = name
        if group == "packet-sockets":
            family, kind, protocol = (value & 0xFFFFFFFF for value in arguments[:3])
            group = "af-vsock" if family == seccomp.VSOCK else group
            if family not in (_INET, _INET6):
                subject = f"{name}(AF_{_FAMILIES.get(family, family)})"
            elif kind & 0xF == _RAW:
                subject = f"{name}(SOCK_RAW)"
            else:
                subject = f"{name} of protocol {protocol}" if protocol else f"{name} of an unusual type"
        program = _comm(pid)
        self._tell(
            f"syscalls.{group}",
            subject,
            f"{program or 'A program'} called {subject}, which the policy denies; "
            f"add {group!r} to the policy's syscalls if this stage needs it.",
            program,
        )
        return EPERM

    def _exec(self, pid: int, name: str, arguments: memoryview, request: bytearray) -> int:
        at = name == "execveat"
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            path = os.fsdecode(_string(memory, arguments[1 if at else 0]))
            directory = arguments[0] & 0xFFFFFFFF if at else _AT_FDCWD
            reason = self._rules.programs.refusal(
                path,
                View(pid),
                lambda: _strings(memory, arguments[2 if at else 1]),
                None if directory == _AT_FDCWD else directory,
            )
        finally:
            os.close(memory)
        if reason is None:
            return 0
        # Was all that read from the caller, and not from another process that has its number now?
        ioctl(self._listener, _IS_VALID, bytes(request[:8]))
        self._tell("commands", path or f"/dev/fd/{directory}", reason[0].upper() + reason[1:] + ".", _comm(pid))
        return EACCES

    def _tell(self, rule: str, subject: str, message: str, program: str) -> None:
        self._denials.add(rule, printable(subject), printable(message), program)


def _string(memory: int, address: int) -> bytes:
    """The string at `address`, at most `MAX_PATH` bytes of it. Raises OSError."""
    # Short: what is beyond its page may not be there, and most paths are.
    for size in (256, MAX_PATH):
        data = _bytes(memory, address, size)
        if b"\0" in data:
            return data.split(b"\0", 1)[0]
        if len(data) < size:
            raise OSError(EFAULT, os.strerror(EFAULT))
    return data


def _strings(memory: int, address: int) -> list[bytes]:
    """The strings of the array at `address`, at most `MAX_ARGUMENTS`. Raises OSError."""
    found = []
    pointers = _bytes(memory, address, 8 * MAX_ARGUMENTS)
    for n in range(MAX_ARGUMENTS):
        pointer = int.from_bytes(pointers[8 * n : 8 * n + 8], "little")
        if not pointer:
            break
        found.append(_string(memory, pointer))
    return found


def _bytes(memory: int, address: int, size: int) -> bytes:
    """Up to `size` bytes at `address`. Raises OSError: EFAULT, as the call itself would."""
    try:
        return os.pread(memory, size, address)
    except (OSError, OverflowError):
        raise OSError(EFAULT, os.strerror(EFAULT)) from None


def _comm(pid: int) -> str:
    try:
        fd = os.open(f"/proc/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return printable(os.read(fd, 64).rstrip(b"\n").decode("utf-8", "replace"))
    except OSError:
        return ""
    finally:
        os.close(fd)
