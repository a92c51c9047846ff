"""Process trees: everything one command started, so that all of it can be killed.

In a box each command lives in a cgroup of its own (cgroups(7), v2), which no descendant can leave, however it
forks and however it calls setsid(2). Without a writable cgroup tree, as in tests on a host, the tree is what
/proc shows: the command's session and its descendants.
"""

from __future__ import annotations

import os
from _signal import SIGKILL

from . import kernel

ROOT = "/sys/fs/cgroup"
EXECS = ROOT + "/execs"
CPU_PERIOD_US = 100_000
"""cpu.max is said per this time; the kernel's own default."""
RESERVE_KB = 40 * 1024
"""Memory that commands may not use: the kernel and this agent must work when they are out of it."""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _count(path: str, key: bytes) -> int:
    """The counter `key` of a file of counters."""
    for line in _read(path).splitlines():
        name, _, number = line.partition(b" ")
        if name == key:
            return int(number)
    return 0


def prepare_cgroups() -> None:
    """Mount cgroup2 and bound the memory of all commands together.

    Without that bound a hog makes the kernel evict every program's pages first, and an emulated guest
    crawls for minutes before its OOM killer acts. Raises OSError.
    """
    if not os.path.exists(ROOT + "/cgroup.controllers"):
        # favordynmods (6.0): moving a process into a new cgroup must not wait for an RCU grace period.
        kernel.mount(
            "cgroup2", ROOT, "cgroup2", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, "favordynmods"
        )
    _write(ROOT + "/cgroup.subtree_control", "+memory +pids +cpu")
    if not os.path.isdir(EXECS):
        os.mkdir(EXECS)
    _write(EXECS + "/cgroup.subtree_control", "+memory +pids")
    total = int(_read("/proc/meminfo").split(None, 2)[1])
    _write(EXECS + "/memory.max", f"{max(total - RESERVE_KB, total // 2) * 1024}")


def kill_all() -> None:
    """SIGKILL to every process of every command that has a cgroup, and to what they fork. Raises OSError."""
    _write(EXECS + "/cgroup.kill", "1")


class CgroupTree:
    """A tree held by a cgroup. The child enters it by writing to `enter_fd` before it drops its rights."""

    __slots__ = ("_path", "enter_fd")

    def __init__(self, name: str) -> None:
        self._path = f"{EXECS}/{name}"
        os.mkdir(self._path)
        self.enter_fd = os.open(self._path + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def entered(self, pid: int) -> None:
        """The leader `pid` was forked."""
        os.close(self.enter_fd)
        self.enter_fd = -1

    def cap(self, memory: int | None, pids: int | None, cpus: float | None) -> None:
        """Bound all processes together: bytes of memory, processes and threads, CPUs. Raises OSError.

        memory.oom.group stays off: the kernel kills the largest process, which is the hog, and an agent lives to
        read that its tool was killed.
        """
        if memory is not None:
            _write(self._path + "/memory.max", str(memory))
            swap = self._path + "/memory.swap.max"
            if os.path.exists(swap):  # only with CONFIG_SWAP
                _write(swap, "0")
        if pids is not None:
            _write(self._path + "/pids.max", str(pids))
        if cpus is not None:
            # Enabled here, since accounting of CPU time costs every switch between commands something.
            _write(EXECS + "/cgroup.subtree_control", "+cpu")
            _write(self._path + "/cpu.max", f"{max(1000, round(cpus * CPU_PERIOD_US))} {CPU_PERIOD_US}")

    def hits(self) -> tuple[int, int]:
        """How many processes were killed for want of memory, and how many forks were refused. Raises OSError."""
        return _count(self._path + "/memory.events", b"oom_kill"), _count(self._path + "/pids.events", b"max")

    def signal(self, number: int) -> None:
        """Send signal `number` to every process; SIGKILL reaches even what is being forked just now."""
        if number == SIGKILL:
            _write(self._path + "/cgroup.kill", "1")
            return
        for pid in _read(self._path + "/cgroup.procs").split():
            _send(int(pid), number)

    def out_of_memory(self) -> bool:
        """Whether the kernel's OOM killer took a process of this tree."""
        return _count(self._path + "/memory.events", b"oom_kill") > 0

    def remove(self) -> bool:
        """Remove the emptied tree; False while something in it is still dying."""
        if self.enter_fd >= 0:
            self.entered(0)
        try:
            os.rmdir(self._path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class SessionTree:
    """A tree found by session and ancestry. A process that left both, by setsid in an orphan, is missed."""

    __slots__ = ("_leader", "enter_fd")

    def __init__(self, name: str) -> None:
        self.enter_fd = -1
        self._leader = 0

    def cap(self, memory: int | None, pids: int | None, cpus: float | None) -> None:
        """Nothing bounds a tree without a cgroup; rlimits do what they can."""

    def hits(self) -> tuple[int, int]:
        """Unknown without a cgroup."""
        return 0, 0

    def entered(self, pid: int) -> None:
        """The leader `pid` was forked; it is about to call setsid(2)."""
        self._leader = pid

    def _members(self) -> list[int]:
        rows = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    # pid (comm) state ppid pgrp session: comm may hold anything, so cut at the last ')'.
                    fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
                    rows.append((int(name), int(fields[1]), int(fields[3])))
                except (OSError, IndexError, ValueError):
                    continue
        found = {self._leader} | {pid for pid, _, session in rows if session == self._leader}
        while True:
            more = {pid for pid, parent, _ in rows if parent in found} - found
            if not more:
                return [pid for pid, _, _ in rows if pid in found]
            found |= more

    def signal(self, number: int) -> None:
        """Send signal `number` to every process found."""
        if self._leader:
            for pid in self._members():
                _send(pid, number)

    def out_of_memory(self) -> bool:
        """Unknown without a cgroup."""
        return False

    def remove(self) -> bool:
        """Nothing to remove."""
        return True


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:  # only in tests, where a recycled pid may be somebody else's
        pass
