"""Removes what dead processes left behind: domains, their processes, box directories. Blocking throughout.

A domain is ours only if its metadata holds a well-formed owner of this user; it is removed only if that owner
is provably dead. Directories follow `voidbox_lab.machines.boxdirs` and `voidbox_lab.machines.apartdirs`.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from voidbox_lab.machines import apartdirs, boxdirs, processes
from voidbox_lab.machines.calls import libvirt, libvirt_qemu
from voidbox_lab.machines.owner import NAMESPACE, Owner
from voidbox_lab.machines.templates import resident
from voidbox_lab.settings import Settings

TIMEOUT_S = 120.0
"""For a whole sweep; a domain that resists takes about 20 s of it."""

_GONE = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}


def marked_domains(handle: libvirt.virConnect) -> list[tuple[str, Owner, libvirt.virDomain]]:
    """Name, owner and handle of every running domain with an owner mark."""
    found = []
    for domain in handle.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with suppress(libvirt.libvirtError, ValueError):  # unmarked, mis-marked, or gone meanwhile
            text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0)
            found.append((domain.name(), Owner.from_xml(text), domain))
    return found


def sweep(handle: libvirt.virConnect, settings: Settings) -> list[str]:
    """Remove every box left behind that can be seen from here; their names, sorted."""
    removed = set()
    for name, owner, domain in marked_domains(handle):
        if owner.uid == os.getuid() and owner.liveness() == "dead":
            _end(domain)
            home = replace(settings, runtime=Path(owner.home))
            _remove_runtime(boxdirs.BoxDirs.of(home, owner.box).runtime)
            removed.add(name)
    for box, path in boxdirs.left_behind(settings):
        # Before its mark goes: nothing else says where the processes of another home's box work.
        processes.end_box(box.runtime)
        shutil.rmtree(path, ignore_errors=True)
        removed.add(box.runtime.name)
    apartdirs.sweep_homes(settings)
    resident.remove_unused(settings.shm)
    return sorted(removed)


def _end(domain: libvirt.virDomain) -> None:
    """End one domain: QMP `quit` first, which is quick, then libvirt's own way."""
    with suppress(libvirt.libvirtError):
        libvirt_qemu.qemuMonitorCommand(domain, '{"execute":"quit"}', 0)
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _GONE:
            raise


def _remove_runtime(path: Path) -> None:
    processes.end_box(path)
    if path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid():
        shutil.rmtree(path, ignore_errors=True)
