"""Small guests for tests of machines: the image's kernel and busybox with an init of the test's own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import voidbox_lab
from voidbox_lab.images import Image, initramfs
from voidbox_lab.machines import BoxDirs, Disk, MachineSpec, Owner, claim
from voidbox_lab.settings import Settings
from voidbox_lab.vsock import VsockDevice

READY = "test guest: ready"

PREAMBLE = """#!/bin/sh
busybox() { /bin/busybox "$@"; }
busybox mkdir -p /proc /sys
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
"""

IDLE = f"echo '{READY}'; busybox sleep 1000000"
PANIC = "echo c > /proc/sysrq-trigger"
POWER_OFF = "busybox poweroff -f"
# Modules as the real init loads them, then what a guest can see of its machine.
INSPECT = """
while read -r module; do busybox insmod /m/$module.ko; done < /m/order
echo "boot: $(busybox cat /sys/firmware/qemu_fw_cfg/by_name/opt/voidbox/boot/raw)"
for disk in /sys/block/vd*; do
  cd $disk
  echo "disk: ${disk##*/} serial=$(busybox cat serial) ro=$(busybox cat ro) size=$(busybox cat size)"
done
for device in /sys/bus/virtio/devices/*; do echo "virtio: $(busybox cat $device/device)"; done
echo "cpu: $(busybox grep -c sse4_2 /proc/cpuinfo)"
busybox poweroff -f
"""


def new_box() -> str:
    """A box id nobody has."""
    return f"vb-{secrets.token_hex(5)}"


def write_initrd(image: Image, script: str, path: Path) -> Path:
    """The image's initramfs with `script` as its init.

    The kernel unpacks archives that follow each other, the later over the earlier (buffer-format.rst).
    """
    init = initramfs.archive([initramfs.file("init", (PREAMBLE + script).encode(), 0o755)])
    path.write_bytes(image.initrd.read_bytes() + init)
    return path


def make_spec(
    settings: Settings,
    image: Image,
    script: str,
    *,
    box: str | None = None,
    disks: tuple[Disk, ...] = (),
    vsock: VsockDevice | None = None,
    dirs: BoxDirs | None = None,
    cmdline: str | None = None,
) -> MachineSpec:
    """A claimed box that runs `script` as its init, under emulation."""
    box = box or new_box()
    owner = Owner.current(settings, box)
    dirs = dirs or claim(settings, owner)
    boot_file = dirs.runtime / "boot"
    boot_file.write_text("what the box is told")
    return MachineSpec(
        name=box,
        memory_mb=256,
        vcpus=1,
        kernel=image.kernel,
        initrd=write_initrd(image, script, dirs.runtime / "initrd"),
        cmdline=image.arguments("tcg") if cmdline is None else cmdline,
        disks=disks,
        vsock=vsock,
        boot_file=boot_file,
        console_log=dirs.runtime / "console.log",
        accelerator="tcg",
        owner=owner,
    )


def child_environ(**changes: str) -> dict[str, str]:
    """An environment in which another Python finds this very package."""
    root = str(Path(voidbox_lab.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path} | changes


def descriptors() -> int:
    """How many file descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def qemus(box: str) -> list[int]:
    """Process ids of QEMUs that run domain `box`, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"guest={box},".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
