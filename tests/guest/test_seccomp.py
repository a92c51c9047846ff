"""The system call filter, run in an interpreter of its own: no call needs to be made."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from voidbox_lab.resources import data_dir
from voidbox_lab.spec.policy import SyscallGroup

ALLOW, NOTIFY, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x7FC00000, 0x80000000, 0x00050001, 0x00050026
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003

_PROGRAM = """
import sys, json
sys.path[:0] = sys.argv[1:3]
from voidbox_guest import seccomp, syscalls
machine, opened, ask_exec, supervised = json.loads(sys.argv[3])
code = seccomp.assemble(seccomp.blocks(machine, opened, ask_exec=ask_exec, supervised=supervised))
print(json.dumps([code.hex(), syscalls.numbers(machine), syscalls.GROUPS]))
"""


@cache
def guest(machine: str, opened: tuple[str, ...] = (), ask_exec: bool = True, supervised: bool = True) -> tuple:
    """The guest's program for `machine`, its system call numbers and its groups."""
    argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(data_dir("guest"))]
    argv += [str(Path(__file__).parents[2] / "voidbox_lab"), json.dumps([machine, opened, ask_exec, supervised])]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    code, numbers, groups = json.loads(said)
    return bytes.fromhex(code), numbers, groups


def verdict(code: bytes, number: int, *args: int, arch: int = ARCHITECTURES["x86_64"]) -> int:
    """What the filter returns for a call. Knows the instructions that the guest's filters hold and no others."""
    data = number.to_bytes(4, "little") + arch.to_bytes(4, "little") + bytes(8)
    data += b"".join(a.to_bytes(8, "little") for a in [*args, 0, 0, 0, 0, 0, 0][:6])
    accumulator = at = steps = 0
    while True:
        steps += 1
        assert steps <= len(code) // 8, "a jump back"
        instruction = code[8 * at : 8 * at + 8]
        assert len(instruction) == 8, "fell off the end"
        operation, yes, no = int.from_bytes(instruction[:2], "little"), instruction[2], instruction[3]
        constant = int.from_bytes(instruction[4:], "little")
        at += 1
        if operation == 0x20:
            assert constant % 4 == 0
            accumulator = int.from_bytes(data[constant : constant + 4], "little")
        elif operation == 0x54:
            accumulator &= constant
        elif operation == 0x06:
            return constant
        else:
            taken = {
                0x15: accumulator == constant,
                0x35: accumulator >= constant,
                0x45: bool(accumulator & constant),
            }[operation]
            at += yes if taken else no


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_group_is_denied_and_opens_alone(machine: str) -> None:
    """The guest knows the specification's groups; each call is told unless just its group is open."""
    arch = ARCHITECTURES[machine]
    code, numbers, groups = guest(machine)
    assert set(groups) == set(get_args(SyscallGroup))
    assert len(code) // 8 < 4096  # BPF_MAXINSNS
    for group, names in groups.items():
        opened, _, _ = guest(machine, (group,))
        for name in names:
            if name not in numbers:
                assert machine == "aarch64", "only x86-64 has calls of its own"
                continue
            assert verdict(code, numbers[name], arch=arch) == NOTIFY, name
            assert verdict(opened, numbers[name], arch=arch) == ALLOW, name
        others = [n for g, more in groups.items() if g != group for n in more if n in numbers]
        assert {verdict(opened, numbers[n], arch=arch) for n in others} == {NOTIFY}
    for number in (0, 1, 2, 3, 9, 60, 257):
        if number not in numbers.values():
            assert verdict(code, number, arch=arch) == ALLOW


def test_arguments_decide() -> None:
    """Sockets by family, type, protocol; clone, unshare by flags: high halves and flag bits do not hide them."""
    code, n, _ = guest("x86_64")
    high = 0xDEADBEEF << 32
    for args, wanted in (
        ((1, 1), ALLOW),
        ((1, 5), ALLOW),
        ((2, 1), ALLOW),
        ((10, 2), ALLOW),
        ((2, 1 | 0o2000000 | 0o4000), ALLOW),
        ((2, 1, 6), ALLOW),
        ((10, 1 | 0o2000000, high | 6), ALLOW),
        ((2, 2, 17), ALLOW),
        ((2, 1, 262), NOTIFY),  # MPTCP
        ((10, 1, high | 262), NOTIFY),
        ((2, 2, 136), NOTIFY),  # UDP-Lite
        ((2, 1 | 0o4000, 132), NOTIFY),  # SCTP
        ((2, 2, 1), NOTIFY),  # ping
        ((10, 2, 58), NOTIFY),
        ((2, 1, 17), NOTIFY),
        ((2, 2, 6), NOTIFY),
        ((2, 5, 132), NOTIFY),
        ((2, 3), NOTIFY),
        ((2, 3, 6), NOTIFY),
        ((2, 3 | 0o2000000), NOTIFY),
        ((high | 10, high | 3), NOTIFY),
        ((16, 3, 0), ALLOW),
        ((16, 3, 4), NOTIFY),
        ((17, 3), NOTIFY),
        ((high | 17, 2), NOTIFY),
        ((40, 1), NOTIFY),
        ((38, 5), NOTIFY),
    ):
        assert verdict(code, n["socket"], *args) == wanted, args
    packets, _, _ = guest("x86_64", ("packet-sockets",))
    vsock, _, _ = guest("x86_64", ("af-vsock",))
    assert [verdict(packets, n["socket"], 2, t, p) for t, p in ((1, 262), (2, 136), (1, 132))] == [ALLOW] * 3
    pairs = (high | 1, 1, 30, 17, 2, 40)  # 30: TIPC
    assert [verdict(code, n["socketpair"], f, 1) for f in pairs] == [ALLOW, ALLOW, *[NOTIFY] * 4]
    assert [verdict(packets, n["socketpair"], f, 1) for f in pairs] == [*[ALLOW] * 5, NOTIFY]
    assert [verdict(vsock, n["socketpair"], f, 1) for f in pairs] == [ALLOW, ALLOW, *[NOTIFY] * 3, ALLOW]
    assert [verdict(packets, n["socket"], f, 3) for f in (2, 17, 38, 40)] == [ALLOW, ALLOW, ALLOW, NOTIFY]
    assert [verdict(vsock, n["socket"], f, 3) for f in (2, 17, 38, 40)] == [NOTIFY, NOTIFY, NOTIFY, ALLOW]
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(code, n["clone"], flag | 17) == NOTIFY
        assert verdict(code, n["unshare"], flag) == NOTIFY
    assert verdict(code, n["clone"], 0x3D0F00) == ALLOW  # a thread of glibc's
    assert verdict(code, n["clone"], 0x80 | 17) == ALLOW  # a signal, not CLONE_NEWTIME
    assert verdict(code, n["unshare"], 0x80) == NOTIFY
    assert verdict(code, n["unshare"], 0x400) == ALLOW
    opened, _, _ = guest("x86_64", ("namespaces",))
    assert {verdict(opened, n[c], 0x10000000) for c in ("clone", "clone3", "unshare", "setns")} == {ALLOW}


def test_what_no_policy_opens() -> None:
    """io_uring, clone3, a listener of its own, and other architectures."""
    everything, n, groups = guest("x86_64", tuple(guest("x86_64")[2]))
    code, _, _ = guest("x86_64")
    for program in (code, everything):
        for call in ("io_uring_setup", "io_uring_enter", "io_uring_register"):
            assert verdict(program, n[call]) == ENOSYS
        assert verdict(program, n["seccomp"], 1, 8) == EPERM
        assert verdict(program, n["seccomp"], 1, 8 | 1) == EPERM
        assert verdict(program, n["seccomp"], 1, 0) == ALLOW
        assert verdict(program, 0x40000000 | 59) == EPERM
        assert verdict(program, 0xFFFFFFFF) == EPERM
        for arch in (I386, ARCHITECTURES["aarch64"], 0):
            assert verdict(program, 1, arch=arch) == KILL
        assert verdict(program, n["execve"]) == verdict(program, n["execveat"]) == NOTIFY
    assert verdict(code, n["clone3"]) == ENOSYS
    assert len(groups) == len(get_args(SyscallGroup))


def test_without_a_supervisor_calls_fail_by_themselves() -> None:
    """Nothing waits for an answer that nobody gives."""
    code, n, groups = guest("x86_64", (), True, False)
    assert {verdict(code, n[name]) for names in groups.values() for name in names} == {EPERM}
    assert verdict(code, n["socket"], 17) == verdict(code, n["clone"], 0x10000000) == EPERM
    assert verdict(code, n["execve"]) == ALLOW
    unasked, _, _ = guest("x86_64", (), False, True)
    assert verdict(unasked, n["execve"]) == ALLOW
    assert verdict(unasked, n["mount"]) == NOTIFY
