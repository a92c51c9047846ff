"""What the outer kernel and QEMU themselves say of a box, apart from the product's word for it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import libvirt_qemu
from anyio.to_thread import run_sync

from voidbox_lab.machines import Hypervisor


@dataclass(frozen=True)
class Qemu:
    """A running QEMU process of a libvirt domain."""

    pid: int
    arguments: tuple[str, ...]
    devices: frozenset[str]
    """Where its descriptors lead: ``/dev/vhost-vsock``, ``anon_inode:kvm-vm`` and the like."""

    @property
    def accelerator(self) -> str:
        """The argument of ``-accel``, or the one within ``-machine``."""
        text = " ".join(self.arguments)
        found = re.search(r"(?:-accel |accel=)(\w+)", text)
        return found[1] if found else ""


async def cid_of(hypervisor: Hypervisor, domain: str) -> int:
    """The guest CID of its vhost-vsock device, which is plugged in late, by QEMU's word (QMP qom-get)."""
    question = {"path": "/machine/peripheral/vsock0/virtio-backend", "property": "guest-cid"}
    command = json.dumps({"execute": "qom-get", "arguments": question})

    def ask() -> str:
        found = hypervisor._connection.handle.lookupByName(domain)
        return str(libvirt_qemu.qemuMonitorCommand(found, command, 0))

    return int(json.loads(await run_sync(ask))["return"])


def qemu_of(domain: str) -> Qemu | None:
    """The QEMU that runs `domain`; None when there is none."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if not any(argument.startswith(f"guest={domain},") for argument in arguments):
                continue
            devices = frozenset(str(link.readlink()) for link in (entry / "fd").iterdir())
        except OSError:  # it has just ended
            continue
        return Qemu(int(entry.name), tuple(arguments), devices)
    return None
