"""What a machine is made of, and how it ended: plain records. Not for how libvirt is told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from voidbox_lab.errors import UserError
from voidbox_lab.machines.owner import Owner
from voidbox_lab.spec.volume import MAX_MOUNTS
from voidbox_lab.vsock.transport import VsockDevice

Accelerator = Literal["kvm", "tcg"]
GoneReason = Literal["panic", "shutdown", "crashed", "destroyed", "killed"]

MIN_MEMORY_MB = 128
"""Below this the guest kernel and its initramfs do not fit."""
MAX_DISKS = 20
"""Disks sit in fixed slots of the root bus, 0x03 to 0x16; nineteen layers and a scratch disk."""
MAX_VOLUMES = MAX_MOUNTS
"""The functions of one slot: of the root bus, or of as many root ports in a machine that is saved."""
MAX_CMDLINE = 2047
"""Bytes; ``COMMAND_LINE_SIZE`` of x86 less the final NUL (arch/x86/include/asm/setup.h)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_SERIAL = re.compile(r"[A-Za-z0-9_.-]{0,20}")


@dataclass(frozen=True)
class Disk:
    """A raw disk image shown to the guest as virtio-blk."""

    path: Path
    read_only: bool
    serial: str = ""
    """What the guest reads in ``/sys/block/vdX/serial``; at most 20 bytes (VIRTIO_BLK_ID_BYTES)."""
    lasting: bool = False
    """It outlives the machine: what the guest flushes is written to the host's disk."""


@dataclass(frozen=True)
class MemoryFile:
    """Guest memory as a file, for machines that are saved or restored."""

    path: Path
    """Exactly the memory's size; in a tmpfs, or the disk would be written with every store of the guest."""
    shared: bool
    """Writes go to the file. False: it is mapped copy-on-write, which a vhost-user device cannot follow."""


@dataclass(frozen=True)
class MachineSpec:
    """Everything `Hypervisor.start` needs. Files must exist and stay until the machine is gone."""

    name: str
    memory_mb: int
    vcpus: int
    kernel: Path
    """An uncompressed ELF ``vmlinux`` with a PVH entry, or a bzImage."""
    initrd: Path
    cmdline: str
    """Kernel arguments; nothing secret. ``panic=-1`` is added, or a panic would look like a hang."""
    disks: tuple[Disk, ...]
    """In guest order: the first is ``/dev/vda``."""
    vsock: VsockDevice | None
    boot_file: Path | None
    """Bytes for fw_cfg entry ``opt/voidbox/boot``, mode 0600."""
    console_log: Path
    """Where the guest's serial output goes, capped. A socket is made beside it."""
    accelerator: Accelerator
    owner: Owner
    memory: MemoryFile | None = None
    """None for a machine that is never saved nor restored. Else `vsock` is plugged in after the restore."""
    volumes: tuple[Disk, ...] = ()
    """More disks, in a slot of their own; a machine with `memory` gets them later (`Machine.plug`)."""
    incoming: bool = False
    """Start empty and paused, for `Machine.restore`."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            UserError: a value is out of range.
        """
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"The machine name {self.name!r} is not a short name of letters, digits, '_', '.', '-'."
            )
        if self.memory_mb < MIN_MEMORY_MB:
            raise UserError(
                f"A box needs at least {MIN_MEMORY_MB} MB of memory; {self.memory_mb} MB was asked for."
            )
        if not 1 <= self.vcpus <= 64:
            raise UserError(f"A box has 1 to 64 vCPUs; {self.vcpus} was asked for.")
        if len(self.disks) > MAX_DISKS:
            raise UserError(f"A box has at most {MAX_DISKS} disks; {len(self.disks)} were asked for.")
        if len(self.volumes) > MAX_VOLUMES:
            raise UserError(f"A box has at most {MAX_VOLUMES} volumes; {len(self.volumes)} were asked for.")
        if self.volumes and self.memory:
            raise ValueError("volumes of a machine that is saved or restored are plugged in once it runs")
        if len(self.cmdline.encode()) > MAX_CMDLINE - len(" panic=-1"):
            raise UserError(f"The kernel command line is longer than {MAX_CMDLINE} bytes; shorten it.")
        for disk in (*self.disks, *self.volumes):
            if not _SERIAL.fullmatch(disk.serial):
                raise UserError(f"The disk serial {disk.serial!r} is not up to 20 letters, digits, '_', '.', '-'.")


@dataclass(frozen=True)
class Gone:
    """How a machine ended.

    `reason`:

    - ``destroyed``: `Machine.destroy`, or somebody with libvirt's own tools;
    - ``shutdown``: the guest powered off or rebooted (a reboot is an end here);
    - ``panic``: the same, with a kernel panic on the console. A guest can fake the text, to its own harm only;
    - ``killed``: QEMU ended without the guest asking: a signal, the host's OOM killer, a crash of QEMU;
    - ``crashed``: the hypervisor stopped the guest (an internal error of KVM, say).
    """

    reason: GoneReason
    console_tail: str
    """The last lines of the console, cleaned of control characters; hostile all the same."""
