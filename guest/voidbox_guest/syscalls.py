"""The system calls that agents are denied, by what they are for, with their numbers.

The groups are `voidbox_lab.spec.policy.SyscallGroup`, which a policy opens by name. Numbers are those of
asm/unistd_64.h (x86-64) and asm-generic/unistd.h (arm64); from 424 on they are the same.
"""

from __future__ import annotations

import os

_X86_64, _ARM64 = 0, 1
_MACHINES = {"x86_64": _X86_64, "aarch64": _ARM64}

# Name to the numbers on x86-64 and on arm64; None: it has none there.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "af-vsock": (),
    "bpf": ("bpf",),
    "kernel-modules": ("delete_module", "finit_module", "init_module"),
    "kexec": ("kexec_file_load", "kexec_load"),
    "keyrings": ("add_key", "keyctl", "request_key"),
    "memfd": ("memfd_create", "memfd_secret"),
    "mount": (
        *("chroot", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr"),
        *("move_mount", "open_by_handle_at", "open_tree", "open_tree_attr", "pivot_root", "umount2"),
    ),
    "namespaces": ("setns",),
    "packet-sockets": (),
    "perf": ("perf_event_open",),
    "ptrace": ("kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"),
    "reboot": (
        *("acct", "ioperm", "iopl", "nfsservctl", "quotactl", "quotactl_fd", "reboot"),
        *("setdomainname", "sethostname", "swapoff", "swapon", "vhangup"),
    ),
    "time": ("adjtimex", "clock_adjtime", "clock_settime", "settimeofday"),
    "userfaultfd": ("userfaultfd",),
}
"""Group to the calls that are denied whatever their arguments. What is denied by its arguments (sockets by family,
clone(2) and unshare(2) by flags) is `seccomp`'s business."""


def numbers(machine: str | None = None) -> dict[str, int]:
    """Name to number on `machine` (as uname(2) says it), by default this one. Raises KeyError for one unknown."""
    column = _MACHINES[machine or os.uname().machine]
    return {name: number for name, row in _NUMBERS.items() if (number := row[column]) is not None}
