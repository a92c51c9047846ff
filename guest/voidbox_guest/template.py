"""The guest as a template: does before the save what every clone would do after it, and wakes up as a clone.

A template is a guest without vsock, saved while it waits in `await_clone`; a clone is the same memory in another
machine, which has a vsock device and boot data of its own. So whatever runs before the wait is paid once, and
whatever it leaves in memory is in every clone: no secret, no random number that anybody will rely on, no identity.
"""

from __future__ import annotations

import os
from time import sleep

from wire.protocol import BOOT_DATA, TEMPLATE_LINE

from . import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

POLL_S = 0.002
"""Between looks at the boot data. The clock that counts stands still while the template is a file."""
TEMPLATE_MARK = b'"template"'
"""In a template's boot data, and in no clone's."""
KEEP_FREE = 12 << 20
"""Bytes left alone above the kernel's own reserves. Below those it begins to reclaim; where nothing is left to
reclaim it panics, since PID 1 cannot be killed."""
RESCAN = "/sys/class/pci_bus/0000:01/rescan"
"""The bus behind the one PCIe root port, where the host plugs vsock in (``libvirt-templates/box.xml.j2``)."""


def await_clone() -> tuple[dict[str, Any], bytearray]:
    """Say that the machine may be saved now; return, in a clone, with the clone's own boot data and secret.

    fw_cfg belongs to the machine and not to its memory, so the boot data changes under a guest that was
    restored into another machine. Its size does not: the kernel learned that when the template booted, and the
    host pads to `wire.protocol.BOOT_DATA_SIZE`.
    """
    fd = os.open(BOOT_DATA, os.O_RDONLY | os.O_CLOEXEC)
    try:
        boot.announce(TEMPLATE_LINE)
        # The host may save us anywhere from here on, in the middle of a read too: then the next is half of each
        # machine's, so what counts is what is said twice.
        seen = boot.pread_boot_data(fd)
        while True:
            sleep(POLL_S)
            before, seen = seen, boot.pread_boot_data(fd)
            said_twice = seen == before
            before[:] = bytes(len(before))  # it may hold the secret, or half of it; see `boot.take_secret`
            if said_twice and TEMPLATE_MARK not in seen:
                return boot.parse_boot_data(seen)
    finally:
        os.close(fd)


def find_new_devices() -> None:
    """Have the kernel look for what the host plugged in while this guest was a file: vsock.

    The hot-plug event says so too, later: it waits for ACPI's own work queue.
    """
    fd = os.open(RESCAN, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def drop_caches() -> None:
    """Give up what was read and is mapped by nobody: most of it was for the boot, and clones would carry it.

    See proc(5), ``/proc/sys/vm/drop_caches``.
    """
    os.sync()  # only clean pages can be dropped
    fd = os.open("/proc/sys/vm/drop_caches", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"3")
    finally:
        os.close(fd)


def scrub_free_memory() -> None:
    """Make free pages zero, so that the host has less to keep and to copy.

    The kernel zeroes what it gives to a process; the pages keep that when they are free again.
    """
    import mmap

    with open("/proc/meminfo", "rb") as file:
        fields = {line.split(b":")[0]: int(line.split()[1]) << 10 for line in file}
    with open("/proc/sys/vm/min_free_kbytes", "rb") as file:
        low = int(file.read()) << 10
    # The high watermark is 3/2 of the lowest; a zone keeps 1/256 of each one above (sysctl/vm.rst).
    size = fields[b"MemFree"] - KEEP_FREE - low * 3 // 2 - fields[b"MemTotal"] // 128
    if size > 0:
        with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
            pass
