"""Where the agent may write: mounted so that nothing in there can be executed, be a device or grant rights.

Landlock keeps the kernel from starting a program there; noexec also keeps one from being mapped as code, by the
dynamic loader or by the agent's own mmap(2) (mount(8)). The flags are those of the mount, so they bind root too.
"""

from __future__ import annotations

import os

from wire.protocol import DENIED

from . import kernel
from .calls import OpError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .programs import Programs

WORKSPACE = ("/workspace", "/home/agent", "/tmp", "/var/tmp")
"""The agent's own directories."""
OWN = (*WORKSPACE, "/dev/shm")
_DISKS = ("ext4",)
"""File systems of volumes."""
_KEEP = kernel.MS_NOSUID | kernel.MS_NODEV


class Places:
    """The writable mounts of this box. `privileged` False (tests on a host) mounts nothing."""

    def __init__(self, *, privileged: bool = True) -> None:
        self.privileged = privileged
        self._closed: dict[str, bool] = {}
        self._folders: dict[str, bool] = {}

    def add(self, place: str, *, read_only: bool) -> None:
        """Make a mount of `place`, where a folder of the host was copied to. Raises OSError."""
        if self.privileged:
            kernel.mount(place, place, "", kernel.MS_BIND)
            self._close(place, True, read_only=read_only)
        self._folders[place] = read_only

    def prepare(self) -> None:
        """Make each of `OWN` a mount of its own, and have the root grant no rights. Raises OSError."""
        if not self.privileged:
            return
        mounted = {target for target, _, _ in _mounts()}
        for place in OWN:
            if os.path.isdir(place) and place not in mounted:
                kernel.mount(place, place, "", kernel.MS_BIND)
        kernel.mount("", "/", "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_NOSUID)
        for place in OWN:
            if os.path.isdir(place):
                self._close(place, True, read_only=False)

    def disks(self) -> list[tuple[str, bool]]:
        """Where volumes and folders of the host are mounted, and whether read-only."""
        mounts = _mounts() if self.privileged else []
        disks = [(target, read_only) for target, kind, read_only in mounts if kind in _DISKS and target != "/"]
        return [*disks, *self._folders.items()]

    def real(self, path: str) -> str:
        """`path` without the links of the image that lead to it.

        Raises OpError for a link in a place of agents, which one may have laid, in this box or in one before it:
        what a policy names there it would turn into something else.
        """
        path = os.path.normpath(path)
        real = os.path.realpath(path)
        for place in (*OWN, *(disk for disk, _ in self.disks())):
            if path.startswith(place + "/") and real != os.path.realpath(place) + path[len(place) :]:
                raise OpError(
                    DENIED, f"the policy names {path}, where a symbolic link leads to {real}; name what is meant"
                )
        return real

    def close(self, programs: Programs) -> None:
        """noexec for every place in which `programs` names nothing, and not for the others. Raises OSError."""
        if not self.privileged:
            return
        for place in OWN:
            if os.path.isdir(place):
                self._close(place, not programs.within(place), read_only=False)
        for place, read_only in self.disks():
            self._close(place, not programs.within(place), read_only=read_only)

    def _close(self, place: str, closed: bool, *, read_only: bool) -> None:
        if self._closed.get(place) is not closed:
            flags = kernel.MS_REMOUNT | kernel.MS_BIND | _KEEP
            flags |= (kernel.MS_NOEXEC if closed else 0) | (kernel.MS_RDONLY if read_only else 0)
            kernel.mount("", place, "", flags)
            self._closed[place] = closed


def _mounts() -> list[tuple[str, str, bool]]:
    """Place, file system and whether read-only, of every mount."""
    found = []
    with open("/proc/self/mounts", "rb") as table:
        for line in table:
            _, target, kind, options, *_ = line.split()
            # Blanks and backslashes are octal in there (proc(5)); no place of ours holds one.
            found.append((os.fsdecode(target), kind.decode(), b"ro" in options.split(b",")))
    return found
