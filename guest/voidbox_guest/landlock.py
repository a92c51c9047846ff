"""Landlock rulesets (landlock(7)): what a process tree may execute, read and write, by path.

A ruleset denies each right that it handles except beneath the paths it names. Kernels know more rights from
version to version of the ABI, and a ruleset may only handle what its kernel knows: `rights` is that set. Rights
and system calls are those of linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
from stat import S_ISDIR

from .kernel import check, syscall

EXECUTE = 1
READ = 1 << 2 | 1 << 3
"""Opening a file for reading, listing a directory."""
_WRITE_FILE, _REMOVE, _REFER, _TRUNCATE = 1 << 1, 1 << 4 | 1 << 5, 1 << 13, 1 << 14
_MAKE_DEVICES, _MAKE = 1 << 6 | 1 << 11, 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12
WRITE = _WRITE_FILE | _REMOVE | _MAKE | _MAKE_DEVICES | _REFER | _TRUNCATE
"""Writing, making, removing and renaming. Reparenting (REFER) is here since a kernel that knows it denies it
unless it is granted, even by a ruleset that does not handle it."""
WRITABLE = WRITE & ~_MAKE_DEVICES
"""What is granted where writing is allowed: device nodes are root's to make anyway."""
_FILE = EXECUTE | _WRITE_FILE | 1 << 2 | _TRUNCATE
"""The rights that a rule on something other than a directory may hold."""

# All rights of each ABI. From 5 on there is one more, for ioctl(2) on devices, which nobody here handles.
_RIGHTS = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1)

# System call numbers of 5.13 and later are the same everywhere (asm-generic/unistd.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1


def abi() -> int:
    """The kernel's Landlock version; 0 when it has none or it is switched off."""
    return max(0, syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION)))


def rights(version: int) -> int:
    """Every right that ABI `version` offers."""
    return _RIGHTS[min(version, len(_RIGHTS) - 1)]


def ruleset(handled: int, rules: dict[str, int]) -> int:
    """A ruleset as a close-on-exec descriptor: of the rights `handled`, only those in `rules`, by path, are left.

    A path stands for all below it. Rights that the kernel does not know are left out. Raises OSError, with the
    path where one is to blame.
    """
    handled &= rights(abi())
    attribute = ctypes.c_uint64(handled)
    made = check(
        syscall(_CREATE_RULESET, ctypes.byref(attribute), ctypes.c_size_t(8), ctypes.c_uint32(0)),
        "landlock_create_ruleset",
    )
    try:
        for path, granted in rules.items():
            _add(made, path, granted & handled)
    except OSError:
        os.close(made)
        raise
    return made


def _add(ruleset: int, path: str, granted: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not S_ISDIR(os.fstat(fd).st_mode):
            granted &= _FILE
        if granted:  # an empty rule is an error
            # struct landlock_path_beneath_attr is packed: u64 allowed_access, s32 parent_fd.
            rule = granted.to_bytes(8, "little") + fd.to_bytes(4, "little")
            check(syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, ctypes.c_uint32(0)), path)
    finally:
        os.close(fd)


def restrict(ruleset: int) -> None:
    """Bind this process and all its children to `ruleset`; needs `kernel.no_new_privileges` first."""
    check(syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)), "landlock_restrict_self")
