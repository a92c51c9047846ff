"""The seccomp filter of agents (seccomp(2)): which system calls are denied, asked about, or let through.

A filter is a program in classic BPF (linux/filter.h) over `struct seccomp_data`. It is small enough to be put
together here from nested blocks, each an instruction sequence that ends in a verdict or falls through; tests run
it in an interpreter of their own. Denied calls and execve(2) are notified to the supervisor (seccomp_unotify(2)),
so that they are told; without a supervisor they fail by themselves.

What is denied whatever the policy says: io_uring, whose requests pass no filter (ENOSYS, as programs that look
for it expect); a second supervisor; calls of another architecture (SIGSYS) and x32's (EPERM). And clone3(2),
unless the policy opens namespaces: a filter cannot see its flags (ENOSYS: libc falls back to clone).
"""

from __future__ import annotations

import ctypes
from errno import EINVAL, ENOSYS, EPERM

from .kernel import check, syscall
from .syscalls import GROUPS, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    Block = list[tuple[int, int, int, int]]
    """Instructions: code, jump if true, jump if false, constant."""

KILL_PROCESS, ERRNO, NOTIFY, ALLOW = 0x80000000, 0x00050000, 0x7FC00000, 0x7FFF0000

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16
"""Offsets in struct seccomp_data; each argument has 8 bytes, the low half first."""
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET (linux/sched.h)."""
_NEW_TIME = 0x80
"""CLONE_NEWTIME, which only unshare(2) and clone3(2) take: in clone(2) these bits are a signal."""
_UNIX, _INET, _INET6, _NETLINK, VSOCK = 1, 2, 10, 16, 40
_STREAM, _DATAGRAM, _TYPE = 1, 2, 0xF
_TCP, _UDP = 6, 17

_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE_RECV = 1, 8, 32


def _returns(action: int) -> Block:
    return [(_RETURN, 0, 0, action)]


def _argument(n: int) -> Block:
    return [(_LOAD, 0, 0, _ARGS + 8 * n)]


def _when(jump: int, value: int, then: Block) -> Block:
    """`then` if the accumulator compares so with `value`. At most 255 instructions can be skipped."""
    return [(jump, 0, len(then), value), *then]


def _equal(value: int, then: Block) -> Block:
    return _when(_JUMP_EQUAL, value, then)


def _sockets(opened: Collection[str], deny: Block) -> Block:
    """socket(2): UNIX, TCP and UDP, and the netlink that names interfaces and addresses.

    Without NETLINK_ROUTE getaddrinfo(3) and getifaddrs(3) fail, and it shows nothing that /proc/net does not.
    Other protocols (MPTCP, UDP-Lite, SCTP, ping) and other families are kernel code that no agent needs.
    """
    allow = _returns(ALLOW)
    packets = allow if "packet-sockets" in opened else deny
    plain = [*_argument(1), (_AND, 0, 0, _TYPE)]
    for kind, protocol in ((_STREAM, _TCP), (_DATAGRAM, _UDP)):
        plain += _equal(kind, _argument(2) + _equal(0, allow) + _equal(protocol, allow) + packets)
    plain += packets
    return [
        *_argument(0),
        *_equal(_UNIX, allow),
        *_equal(_INET, plain),
        *_equal(_INET6, plain),
        *_equal(VSOCK, allow if "af-vsock" in opened else deny),
        *_equal(_NETLINK, _argument(2) + _equal(0, allow) + packets),
        *packets,
    ]


def _pairs(opened: Collection[str], deny: Block) -> Block:
    """socketpair(2), which makes two sockets of any family before it finds that most have no pairs: UNIX only."""
    allow = _returns(ALLOW)
    return [
        *_argument(0),
        *_equal(_UNIX, allow),
        *_equal(VSOCK, allow if "af-vsock" in opened else deny),
        *(allow if "packet-sockets" in opened else deny),
    ]


def program(opened: Collection[str] = (), *, ask_exec: bool = True, supervised: bool = True) -> bytes:
    """The filter for a policy that opens the groups `opened`; struct sock_filter after struct sock_filter.

    `ask_exec`: execve(2) is notified too. `supervised`: somebody listens.
    """
    import os

    return assemble(blocks(os.uname().machine, opened, ask_exec=ask_exec, supervised=supervised))


def blocks(machine: str, opened: Collection[str], *, ask_exec: bool, supervised: bool) -> Block:
    """The filter as instructions, for any `machine`."""
    number = numbers(machine)
    deny = _returns(NOTIFY) if supervised else _returns(ERRNO | EPERM)
    made = [(_LOAD, 0, 0, _ARCH), (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]), *_returns(KILL_PROCESS)]
    made += [(_LOAD, 0, 0, _NR)]
    if machine == "x86_64":
        made += _when(_JUMP_AT_LEAST, _X32, _returns(ERRNO | EPERM))
    for name in ("io_uring_setup", "io_uring_enter", "io_uring_register"):
        made += _equal(number[name], _returns(ERRNO | ENOSYS))
    made += _equal(
        number["seccomp"],
        _argument(1) + _when(_JUMP_SET, _NEW_LISTENER, _returns(ERRNO | EPERM)) + _returns(ALLOW),
    )
    for group, names in GROUPS.items():
        if group not in opened:
            for name in names:
                if name in number:
                    made += _equal(number[name], deny)
    if "namespaces" not in opened:
        made += _equal(number["clone3"], _returns(ERRNO | ENOSYS))
        flags = _argument(0) + _when(_JUMP_SET, NAMESPACES, deny) + _returns(ALLOW)
        made += _equal(number["clone"], flags)
        flags = _argument(0) + _when(_JUMP_SET, NAMESPACES | _NEW_TIME, deny) + _returns(ALLOW)
        made += _equal(number["unshare"], flags)
    made += _equal(number["socket"], _sockets(opened, deny))
    made += _equal(number["socketpair"], _pairs(opened, deny))
    if ask_exec and supervised:
        made += _equal(number["execve"], _returns(NOTIFY)) + _equal(number["execveat"], _returns(NOTIFY))
    return made + _returns(ALLOW)


def assemble(block: Block) -> bytes:
    """`block` as the kernel takes it."""
    return b"".join(
        code.to_bytes(2, "little") + bytes((yes, no)) + k.to_bytes(4, "little") for code, yes, no, k in block
    )


def install(code: bytes, *, supervised: bool = True) -> int:
    """Bind this process and all its children to the filter `code`; needs `kernel.no_new_privileges` first.

    Returns the listener, close-on-exec, for the supervisor (-1 without). Raises OSError.
    """
    # struct sock_fprog: the number of instructions, then a pointer to them.
    memory = ctypes.create_string_buffer(code, len(code))
    fprog = (len(code) // 8).to_bytes(8, "little") + ctypes.addressof(memory).to_bytes(8, "little")
    number = numbers()["seccomp"]
    if not supervised:
        check(syscall(number, _SET_MODE_FILTER, ctypes.c_ulong(0), fprog), "seccomp")
        return -1
    # Without the second flag (5.19) a signal interrupts a call that the supervisor looks at, and it begins anew.
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE_RECV, _NEW_LISTENER):
        listener = syscall(number, _SET_MODE_FILTER, ctypes.c_ulong(flags), fprog)
        if listener >= 0 or ctypes.get_errno() != EINVAL:
            break
    return check(listener, "seccomp")
