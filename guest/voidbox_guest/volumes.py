"""Volumes: disks that outlive the box, mounted where the host says and let go before the box ends.

What is in them was written by other boxes and is as hostile as any guest: it meets this box's kernel alone.
"""

from __future__ import annotations

import os
from errno import EBUSY, EROFS
from time import monotonic, sleep

from wire.protocol import BAD_REQUEST, BUSY, DENIED, EXISTS, IO, UNSUPPORTED

from . import kernel, trees
from .calls import Call, OpError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BLOCKS = "/sys/block"
BUSES = "/sys/class/pci_bus"
ROOT_BUS = "0000:00"
FIND_S = 3.0
"""Seconds for a disk that the host plugged in to appear; a rescan finds it at once."""
POLL_S = 0.02
KILLED_S = 1.0
"""Seconds for killed commands to let go of their files."""


class Volumes:
    """The volumes of this box. `privileged` False (tests on a host) mounts nothing."""

    def __init__(self, *, privileged: bool = True) -> None:
        self._privileged = privileged
        self._mounted: list[str] = []

    def mount(self, call: Call) -> dict[str, Any]:
        """Mount the disk with serial ``serial`` at ``path``, for the agent to write to unless ``read_only``."""
        serial, path = call.text("serial"), call.path("path")
        read_only = call.flag("read_only")
        if not serial or "/" in serial or os.path.normpath(path) != path or path == "/":
            raise OpError(BAD_REQUEST, "a volume has a serial and a normalised path")
        if not self._privileged:
            raise OpError(UNSUPPORTED, "an unprivileged agent mounts nothing")
        device = find(serial)
        make_place(path)
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC | (kernel.MS_RDONLY if read_only else 0)
        # With discard, what is deleted here takes no room on the host's disk any more.
        options = "errors=remount-ro" + ("" if read_only else ",discard")
        try:
            kernel.mount(device, path, "ext4", flags, options)
        except OSError as error:
            # EROFS: there is a journal to replay, and no writing (fs/ext4/super.c).
            raise OpError(DENIED if error.errno == EROFS else IO, f"{path}: {os.strerror(error.errno)}") from None
        self._mounted.append(path)
        return {}

    def unmount(self, call: Call) -> dict[str, Any]:
        """End every command and unmount all: then everything is on the disks, and nothing is left to replay."""
        if self._mounted:
            trees.kill_all()
        end = monotonic() + KILLED_S
        while self._mounted:
            path = self._mounted[-1]
            try:
                kernel.unmount(path)
            except OSError as error:
                if error.errno != EBUSY:
                    raise
                if monotonic() < end:
                    sleep(POLL_S)
                    continue
                # Somebody still holds it: writes end here and now, which is as good on the disk.
                kernel.freeze(path)
            self._mounted.pop()
        return {}


def find(serial: str) -> str:
    """The device of the disk called `serial`; the host may have plugged it in a moment ago.

    Raises OpError (busy) when it does not appear within `FIND_S`.
    """
    end = monotonic() + FIND_S
    while True:
        for name in os.listdir(BLOCKS):
            if _serial(name) == serial:
                return "/dev/" + name
        if monotonic() > end:
            raise OpError(BUSY, f"the disk {serial[:40]!r} did not appear within {FIND_S:g} s")
        if not rescan():
            sleep(POLL_S)


def rescan() -> bool:
    """Have the kernel look behind its PCI bridges; the hot-plug event says the same, but later. False without."""
    # The root bus takes no device later, and looking at all of it is slow.
    buses = [bus for bus in os.listdir(BUSES) if bus != ROOT_BUS and not _occupied(bus)]
    for bus in buses:
        fd = os.open(f"{BUSES}/{bus}/rescan", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
    return bool(buses)


def _occupied(bus: str) -> bool:
    """A root port has one place."""
    return os.path.exists(f"/sys/bus/pci/devices/{bus}:00.0")


def _serial(name: str) -> str:
    try:
        fd = os.open(f"{BLOCKS}/{name}/serial", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""  # loop devices have none
    try:
        return os.read(fd, 64).decode("ascii", "replace").strip("\0\n ")
    finally:
        os.close(fd)


def make_place(path: str) -> None:
    """A directory at `path` to mount on, root's. Raises OpError where something would be hidden or led astray."""
    if os.path.realpath(path) != path:
        raise OpError(EXISTS, f"{path} leads through a symbolic link of the image; choose another place")
    os.makedirs(path, 0o755, exist_ok=True)
    if os.listdir(path):
        raise OpError(
            EXISTS, f"{path} of the image is not empty, and the volume would hide it; choose another place"
        )
