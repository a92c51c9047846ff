"""Saves a machine's device state and restores it into another domain. Blocking throughout; memory is a file.

libvirt's own restore refuses a domain of another name or UUID, so the state goes through QEMU's monitor: with the
capability ``x-ignore-shared`` it holds devices only (0.4 MB), since both sides have the memory in a file. URIs of
kind ``exec:`` are refused under libvirt's seccomp sandbox, hence descriptors.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError
from voidbox_lab.machines.library import libvirt, libvirt_qemu
from voidbox_lab.vsock.transport import VsockDevice

POLL_S = 0.002
PORT_BUS = "pci.1"
"""libvirt's name of the root port in ``libvirt-templates/box.xml.j2``."""
KERNEL_VSOCK = """\
<vsock model="virtio-non-transitional"><cid {cid}/>\
<address type="pci" domain="0x0000" bus="0x01" slot="0x00" function="0x0"/></vsock>"""


def save(domain: libvirt.virDomain, target: Path, timeout_s: float) -> None:
    """Stop `domain` for good and write its device state to the new file `target`, mode 0600.

    Its memory file and its disks are then what the guest left.

    Raises:
        ProviderError: QEMU refused, the disk is full, or it took longer than `timeout_s` (cause ``save``).
        libvirt.libvirtError: libvirt failed.
    """
    domain.suspend()
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ProviderError(f"{target} cannot be made ({error.strerror}); make room.", cause="disk") from error
    try:
        _ignore_shared(domain)
        _monitor(domain, "getfd", {"fdname": "state"}, fd)
        _monitor(domain, "migrate", {"uri": "fd:state"})
        end = time.monotonic() + timeout_s
        while (state := _monitor(domain, "query-migrate").get("status")) != "completed":
            if state == "failed":
                raise ProviderError(
                    f"QEMU could not save a machine to {target}; look for room on its disk.", cause="save"
                )
            if time.monotonic() > end:
                raise ProviderError(
                    f"QEMU did not save a machine within {timeout_s:g} s; try again.", cause="save"
                )
            time.sleep(POLL_S)
    finally:
        os.close(fd)


def restore(domain: libvirt.virDomain, state: int, vsock: VsockDevice | None, timeout_s: float) -> None:
    """Load a device state into `domain`, which was started with ``incoming``, plug `vsock` in and run it.

    Args:
        state: a descriptor of the saved state, at its beginning.

    Raises:
        ProviderError: QEMU refused the state, or it took longer than `timeout_s` (cause ``restore``).
        libvirt.libvirtError: libvirt failed, or QEMU ended, as it does on a state it cannot read.
    """
    _ignore_shared(domain)
    _monitor(domain, "getfd", {"fdname": "state"}, state)
    _monitor(domain, "migrate-incoming", {"uri": "fd:state"})
    end = time.monotonic() + timeout_s
    while (status := _monitor(domain, "query-status").get("status")) == "inmigrate":
        if time.monotonic() > end:
            raise ProviderError(f"QEMU did not load a saved machine within {timeout_s:g} s.", cause="restore")
        time.sleep(POLL_S)
    if status not in {"paused", "prelaunch", "postmigrate"}:
        raise ProviderError(f"QEMU did not load a saved machine: it is {status}.", cause="restore")
    if vsock is not None:
        _plug(domain, vsock)
    domain.resume()


def _plug(domain: libvirt.virDomain, vsock: VsockDevice) -> None:
    if vsock.kind == "kernel":
        cid = 'auto="yes"' if vsock.cid is None else f'auto="no" address="{vsock.cid}"'
        domain.attachDeviceFlags(KERNEL_VSOCK.format(cid=cid), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        return
    backend = {
        "type": "socket",
        "data": {"addr": {"type": "unix", "data": {"path": str(vsock.socket)}}, "server": False},
    }
    _monitor(domain, "chardev-add", {"id": "voidbox-vsock", "backend": backend})
    device = {
        "driver": "vhost-user-vsock-pci",
        "id": "voidbox-vsock0",
        "chardev": "voidbox-vsock",
        "disable-legacy": "on",
        "bus": PORT_BUS,
        "addr": "0",
    }
    _monitor(domain, "device_add", device)


def _ignore_shared(domain: libvirt.virDomain) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    _monitor(domain, "migrate-set-capabilities", {"capabilities": [capability]})


def _monitor(
    domain: libvirt.virDomain, command: str, arguments: Mapping[str, Any] | None = None, fd: int | None = None
) -> dict[str, Any]:
    """One QMP command (QEMU's qapi), with a descriptor if it takes one; its ``return``.

    Raises:
        ProviderError: QEMU's own words (cause ``qmp``).
    """
    text = json.dumps({"execute": command, "arguments": arguments or {}})
    if fd is None:
        answer = libvirt_qemu.qemuMonitorCommand(domain, text, 0)
    else:
        answer, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, text, [fd], 0)
    with suppress(ValueError):
        data = json.loads(answer)
        if isinstance(data, dict) and "return" in data:
            found = data["return"]
            return found if isinstance(found, dict) else {}
        if isinstance(data, dict) and isinstance(data.get("error"), dict):
            raise ProviderError(f"QEMU refused {command}: {str(data['error'].get('desc'))[:200]}.", cause="qmp")
    raise ProviderError(f"QEMU's answer to {command} is not QMP.", cause="qmp")
