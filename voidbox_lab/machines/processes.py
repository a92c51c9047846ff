"""Finds and ends the host processes of one box: QEMU and the user-space vsock device. Nothing else, ever.

For the days when libvirt does not know, or does not answer. Both programs name files in the box's directory
on their command line, which nothing else of ours does.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

DEVICE_MODULE = "voidbox_lab.vsock.device"
"""What the vsock device process is started from; its command line names it."""


def of_box(box_dir: Path) -> Iterator[int]:
    """Process ids of this user's QEMU and vsock device that work below `box_dir`. Blocking."""
    inside = os.fsencode(box_dir) + b"/"
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if entry.stat().st_uid != os.getuid():
                continue
            arguments = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            program = arguments[0].rpartition(b"/")[2]
            ours = program.startswith(b"qemu-") or any(
                DEVICE_MODULE.encode() in argument for argument in arguments
            )
            # QEMU's arguments hold paths inside options: `socket,path=/…`, JSON for -blockdev.
            if ours and any(inside in argument for argument in arguments[1:]):
                yield int(entry.name)


def end(pid: int, timeout_s: float) -> bool:
    """Kill process `pid` and wait until it is gone, at most `timeout_s` seconds; whether it is. Blocking.

    A pid file descriptor (pidfd_open(2)) makes sure that the process waited for is the one killed.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return bool(select.select([handle], [], [], timeout_s)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def end_box(box_dir: Path, timeout_s: float = 5.0) -> list[int]:
    """Kill what `of_box` finds; the process ids. Blocking, `timeout_s` for each."""
    pids = list(of_box(box_dir))
    for pid in pids:
        with suppress(PermissionError):
            end(pid, timeout_s)
    return pids
