"""Makes a template: boots a guest without vsock and without a secret, waits until it says so, saves it."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.images.model import TCG_CPU, Image
from voidbox_lab.machines.boxdirs import BoxDirs, claim
from voidbox_lab.machines.domain import source_digest
from voidbox_lab.machines.hypervisor import Hypervisor
from voidbox_lab.machines.owner import Owner
from voidbox_lab.machines.sparse import copy_sparse
from voidbox_lab.machines.spec import Accelerator, Disk, MachineSpec, MemoryFile
from voidbox_lab.machines.templates import resident
from voidbox_lab.machines.templates.store import Key, Template, TemplateStore
from voidbox_lab.settings import Settings
from voidbox_lab.vsock.transport import VsockDevice

BOOT_S = 180.0
"""Seconds for a template's guest to come up: an emulated boot on a busy host is slow."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a template is asked for by."""

    image: Image
    memory_mb: int
    vcpus: int
    accelerator: Accelerator

    def key(self, hypervisor: Hypervisor) -> Key:
        """The recipe together with what this host adds to it. Blocking, quick.

        Raises:
            ProviderError: QEMU's binary is gone, as it is for a moment while a package replaces it.
        """
        try:
            emulator = hypervisor.emulator.stat()
        except OSError as error:
            raise ProviderError(
                f"QEMU's binary {hypervisor.emulator} cannot be found ({error.strerror}); install it again.",
                cause="no-qemu",
            ) from error
        return Key(
            image=self.image.digest,
            memory_mb=self.memory_mb,
            vcpus=self.vcpus,
            accelerator=self.accelerator,
            emulator=f"{hypervisor.emulator}:{emulator.st_size}:{emulator.st_mtime_ns}",
            qemu=hypervisor.qemu_version,
            libvirt=hypervisor.libvirt_version,
            recipe=source_digest(),
            processor=_host_processor() if self.accelerator == "kvm" else TCG_CPU,
        )

    def spec(
        self,
        dirs: BoxDirs,
        owner: Owner,
        *,
        vsock: VsockDevice | None = None,
        memory: MemoryFile | None = None,
        volumes: tuple[Disk, ...] = (),
        incoming: bool = False,
    ) -> MachineSpec:
        """The machine of a box in `dirs`. One that is saved and one it is restored into are alike but for names.

        The files ``scratch.img``, ``boot.json`` and, with `memory`, that of the memory must exist.
        """
        layers = tuple(Disk(layer.path, True, f"layer{i}") for i, layer in enumerate(self.image.layers))
        return MachineSpec(
            name=owner.box,
            memory_mb=self.memory_mb,
            vcpus=self.vcpus,
            kernel=self.image.kernel,
            initrd=self.image.initrd,
            cmdline=self.image.arguments(self.accelerator),
            disks=(*layers, Disk(dirs.cache / "scratch.img", False, "scratch")),
            vsock=vsock,
            boot_file=dirs.runtime / "boot.json",
            console_log=dirs.runtime / "console.log",
            accelerator=self.accelerator,
            owner=owner,
            memory=memory,
            volumes=volumes,
            incoming=incoming,
        )


async def make(
    settings: Settings,
    hypervisor: Hypervisor,
    store: TemplateStore,
    recipe: Recipe,
    *,
    boot_data: bytes,
    ready_line: str,
    timeout_s: float = BOOT_S,
) -> Template:
    """Boot, save and keep a template of `recipe`; the caller holds `TemplateStore.making`.

    Args:
        boot_data: what makes the guest a template, of the size that clones' boot data will have.
        ready_line: what the guest then writes to its console.

    Raises:
        ProviderError: it did not boot or could not be saved; nothing is left of the attempt.
        LimitExceeded: the guest was not ready within `timeout_s`.
    """
    owner = Owner.current(settings, f"vb-{secrets.token_hex(5)}")
    key = await run_sync(recipe.key, hypervisor)
    async with AsyncExitStack() as stack:
        dirs = await run_sync(claim, settings, owner)
        stack.push_async_callback(_shielded, dirs.remove)
        await run_sync(resident.check_room, settings.shm, recipe.memory_mb << 20)
        await run_sync(copy_sparse, recipe.image.scratch, dirs.cache / "scratch.img")
        await run_sync(_write, dirs.runtime / "boot.json", boot_data)
        memory = dirs.memory / "ram"
        spec = recipe.spec(dirs, owner, memory=MemoryFile(memory, shared=True))
        machine = await hypervisor.start(spec)
        stack.push_async_callback(machine.destroy)
        if not await machine.wait_said(ready_line, timeout_s):
            tail = " | ".join(machine.console_tail().splitlines()[-4:])[-600:] or "nothing"
            if machine.running:
                raise LimitExceeded(
                    f"A template's guest was not ready within {timeout_s:g} s; its console ended with: {tail}; "
                    "try again when the host is less busy.",
                    limit="time",
                    value=timeout_s,
                    unit="s",
                    cause="boot",
                )
            raise ProviderError(
                "A template's guest ended while it booted; rebuild the image with `voidbox image build`, or see "
                f"its console: {tail}.",
                cause="boot",
            )
        state = dirs.memory / "state"
        await machine.save(state)
        await machine.destroy()
        template = await run_sync(store.put, key, memory, dirs.cache / "scratch.img", state)
    log.info("made the template %s: %s", template.digest, json.dumps(template.key))
    return template


async def _shielded(step: Callable[[], object]) -> None:
    with anyio.CancelScope(shield=True):
        await run_sync(step)


def _write(path: Path, data: bytes) -> None:
    """Blocking."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ProviderError(f"{path} cannot be written ({error.strerror}); make room.", cause="disk") from error


def _host_processor() -> str:
    """The host's processor and kernel in a digest: a guest under KVM saw both at its boot."""
    wanted = {"model name", "flags", "microcode"}
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0].splitlines()
    facts = sorted(line for line in lines if line.split("\t", 1)[0].split(":")[0].strip() in wanted)
    release = Path("/proc/sys/kernel/osrelease").read_text(encoding="ascii")
    return sha256("\n".join([*facts, release]).encode()).hexdigest()[:32]
