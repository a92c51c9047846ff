"""The system calls that Python has no name for: mount, prctl, and the ioctls of boot.

Numbers and structures from the kernel's uapi headers (linux/mount.h, linux/prctl.h, linux/random.h,
linux/sockios.h, linux/fs.h); those used here are the same on x86-64 and arm64, except where noted.
"""

from __future__ import annotations

import ctypes
import os

from .syscalls import numbers

_libc = ctypes.CDLL(None, use_errno=True)
syscall = _libc.syscall
syscall.restype = ctypes.c_long  # syscall(2), for what libc has no function for; see `check`

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096

_PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 4, 15, 36, 38

_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_UMOUNT_NOFOLLOW, _FIFREEZE = 8, 0xC0045877
_RB_POWER_OFF = 0x4321FEDC
_CLOSE_RANGE, _CLOSE_RANGE_CLOEXEC = 436, 4


def check(result: int, what: str) -> int:
    """`result` of a system call, unless it failed. Raises OSError, about `what`."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()), target
    )


def unmount(target: str) -> None:
    """umount(2), without following a symbolic link. Raises OSError."""
    check(_libc.umount2(target.encode(), _UMOUNT_NOFOLLOW), target)


def freeze(path: str) -> None:
    """Write the file system at `path` back, its journal too, and let nobody write to it from now on (FIFREEZE).

    Raises OSError."""
    from fcntl import ioctl

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ioctl(fd, _FIFREEZE, 0)
    finally:
        os.close(fd)


def become_subreaper() -> None:
    """Orphaned descendants become this process's children (prctl(2)), as they do for PID 1."""
    check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def no_new_privileges() -> None:
    """From here on execve(2) grants nothing: set-uid bits and file capabilities are ignored, for ever."""
    check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def keep_from_exec(first: int) -> None:
    """Descriptors from `first` on do not outlive the next execve(2) (close_range(2), CLOSE_RANGE_CLOEXEC)."""
    check(syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(-1), _CLOSE_RANGE_CLOEXEC), "close_range")


def set_name(name: bytes) -> None:
    """The name of this process in ps(1), at most 15 bytes."""
    check(_libc.prctl(_PR_SET_NAME, name, 0, 0, 0), "prctl")


def make_undumpable() -> None:
    """From here to the next execve(2) only root may trace this process or read its memory."""
    check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def share_memory(shared: bool) -> None:
    """Whether processes of one user may have each other's memory, by /proc/PID/mem and ptrace(2).

    Yama's ptrace_scope, for the whole box; nothing happens where the kernel has no Yama. Raises OSError."""
    try:
        fd = os.open("/proc/sys/kernel/yama/ptrace_scope", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(fd, b"0" if shared else b"2")
    finally:
        os.close(fd)


def power_off() -> None:
    """Write back and power off (reboot(2)). Returns only on failure."""
    os.sync()
    _libc.reboot(_RB_POWER_OFF)


def add_entropy(entropy: bytes) -> None:
    """Credit `entropy` to the kernel's pool and reseed the generator at once (random(4))."""
    from fcntl import ioctl

    fd = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        # struct rand_pool_info: int entropy_count (bits), int buf_size, bytes.
        size = len(entropy)
        ioctl(fd, _RNDADDENTROPY, (size * 8).to_bytes(4, "little") + size.to_bytes(4, "little") + entropy)
        ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def load_module(fd: int) -> None:
    """Load the kernel module in the file `fd` (finit_module(2)). Raises OSError."""
    check(syscall(numbers()["finit_module"], fd, b"", 0), "finit_module")


def loopback_up() -> None:
    """Bring ``lo`` up (netdevice(7)); the kernel gives it 127.0.0.1 by itself."""
    from _socket import AF_INET, SOCK_DGRAM
    from _socket import socket as raw_socket
    from fcntl import ioctl

    sock = raw_socket(AF_INET, SOCK_DGRAM)
    try:
        request = b"lo".ljust(16, b"\0") + bytes(24)
        flags = int.from_bytes(ioctl(sock.fileno(), _SIOCGIFFLAGS, request)[16:18], "little") | _IFF_UP
        ioctl(sock.fileno(), _SIOCSIFFLAGS, request[:16] + flags.to_bytes(2, "little") + bytes(22))
    finally:
        sock.close()
