"""Machines: libvirt domains started, watched, ended and swept. What runs inside them is `voidbox_lab.box`."""

from voidbox_lab.machines.boxdirs import BoxDirs, claim
from voidbox_lab.machines.hostmemory import available_memory_mb, total_memory_mb
from voidbox_lab.machines.hypervisor import Hypervisor, Owned
from voidbox_lab.machines.machine import Machine
from voidbox_lab.machines.owner import Owner
from voidbox_lab.machines.probe import Verdict, probe_accelerator
from voidbox_lab.machines.spec import Accelerator, Disk, Gone, GoneReason, MachineSpec, MemoryFile
from voidbox_lab.machines.templates.keeper import Templates
from voidbox_lab.machines.templates.make import Recipe
from voidbox_lab.machines.templates.resident import Resident
from voidbox_lab.machines.templates.store import Template, TemplateStore
from voidbox_lab.machines.volumes import Held, Volume, Volumes

__all__ = [
    "Accelerator",
    "BoxDirs",
    "Disk",
    "Gone",
    "GoneReason",
    "Held",
    "Hypervisor",
    "Machine",
    "MachineSpec",
    "MemoryFile",
    "Owned",
    "Owner",
    "Recipe",
    "Resident",
    "Template",
    "TemplateStore",
    "Templates",
    "Verdict",
    "Volume",
    "Volumes",
    "available_memory_mb",
    "claim",
    "probe_accelerator",
    "total_memory_mb",
]
