"""The hypervisor of this process: one libvirt connection, the machines started over it, and their events."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from voidbox_lab.errors import ProviderError, Unavailable
from voidbox_lab.machines import loop, reaper, sweeping
from voidbox_lab.machines.calls import call, detach, libvirt
from voidbox_lab.machines.capabilities import renounce_for_children
from voidbox_lab.machines.connection import Connection, connect
from voidbox_lab.machines.domain import render
from voidbox_lab.machines.hostmemory import QEMU_OVERHEAD_MB, available_memory_mb
from voidbox_lab.machines.machine import CALL_TIMEOUT_S, Machine
from voidbox_lab.machines.owner import Owner
from voidbox_lab.machines.spec import MachineSpec
from voidbox_lab.settings import Settings


@dataclass(frozen=True)
class Owned:
    """A running domain of ours, found by its metadata."""

    name: str
    owner: Owner


class Hypervisor:
    """Starts and finds machines. One per process is enough; use it on the asyncio thread that opened it."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection
        self._machines: dict[str, Machine] = {}
        self._loop = asyncio.get_running_loop()
        self._lost: str | None = None
        self._callback: int | None = None

    @classmethod
    async def open(cls, settings: Settings) -> Hypervisor:
        """Connect to libvirt as `connection.choose` says.

        Raises:
            Unavailable: no libvirt, no QEMU, or another process holds this user's embedded driver.
            ProviderError: libvirt failed or did not answer within its bound.
        """
        loop.acquire()
        try:
            self = cls(settings, await connect(settings))
            try:
                self._callback = await call(
                    "register for events", CALL_TIMEOUT_S, self._register, self._connection.handle
                )
            except BaseException:
                detach(self._connection.handle.close)
                raise
        except BaseException:
            await _release_loop()
            raise
        return self

    @property
    def lost(self) -> str | None:
        """Why the connection to libvirt is gone, in a few words; None while it is not known to be."""
        return self._lost

    @property
    def uri(self) -> str:
        """The connection's URI."""
        return self._connection.choice.uri

    @property
    def reason(self) -> str:
        """Why this connection and no other, in a few words."""
        return self._connection.choice.reason

    @property
    def libvirt_version(self) -> str:
        """libvirt's version, ``9.0.0``."""
        return self._connection.libvirt_version

    @property
    def qemu_version(self) -> str:
        """QEMU's version, ``7.2.22``."""
        return self._connection.qemu_version

    @property
    def emulator(self) -> Path:
        """The QEMU binary that domains run."""
        return self._connection.emulator

    async def start(self, spec: MachineSpec, timeout_s: float = 60.0) -> Machine:
        """Start a domain; returns when its first vCPU runs, not when the guest is ready.

        One that is ``incoming`` is left paused and empty; `Machine.restore` is next.

        Args:
            timeout_s: seconds for libvirt to start QEMU. A domain that comes up later is destroyed.

        Raises:
            Unavailable: this machine lacks something: KVM, a permission, a file of the image.
            ProviderError: libvirt or QEMU failed, there is too little memory (cause ``host-memory``), or
                it took longer than `timeout_s` (cause ``timeout``).
            UserError: a path cannot be written as XML.
        """
        if self._lost:
            raise ProviderError(
                f"The connection to libvirt is lost ({self._lost}); start again.", cause="libvirt-lost"
            )
        if spec.name in self._machines:
            raise ProviderError(f"A machine {spec.name} runs already; names are for one machine.")
        await run_sync(_check_host, spec)
        xml = render(spec)
        machine = Machine(spec, self._forget)
        machine.listen()
        self._machines[spec.name] = machine
        # Where libvirt can, it ends the domain with this connection, that is with this process. The embedded
        # driver cannot, and needs not: `sweep` does it by the owner in the metadata.
        flags = 0 if self._connection.embedded else libvirt.VIR_DOMAIN_START_AUTODESTROY
        if spec.incoming:
            flags |= libvirt.VIR_DOMAIN_START_PAUSED
        try:
            domain = await call(
                f"start {spec.name}",
                timeout_s,
                self._create,
                xml,
                flags,
                late=lambda late: late.destroy(),
            )
        except BaseException:
            machine.abandon()
            raise
        try:
            await machine.attach(domain)
            if spec.vsock is not None and not spec.incoming:
                await machine.read_cid()
        except BaseException:
            await machine.destroy()
            raise
        return machine

    async def owned(self) -> list[Owned]:
        """Every running domain with an owner mark, this process's or another's.

        Raises:
            ProviderError: libvirt failed or did not answer.
        """
        found = await call("list domains", CALL_TIMEOUT_S, sweeping.marked_domains, self._connection.handle)
        return [Owned(name, owner) for name, owner, _ in found]

    async def sweep(self) -> list[str]:
        """Destroy boxes whose owner process is dead: domain, QEMU, vsock device, directories.

        What is not ours, or whose owner lives or cannot be seen from here, is not touched.

        Returns:
            the names of the boxes removed, sorted.

        Raises:
            ProviderError: libvirt failed or did not answer within the bound.
        """
        return await call("sweep", sweeping.TIMEOUT_S, sweeping.sweep, self._connection.handle, self._settings)

    async def aclose(self) -> None:
        """Destroy this process's machines, close the connection and end the event thread. Idempotent."""
        if self._callback is None:
            return
        callback, self._callback = self._callback, None
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for machine in list(self._machines.values()):
                    group.start_soon(_destroy_quietly, machine)
            with suppress(ProviderError):
                await call("close", CALL_TIMEOUT_S, self._close, callback)
            await _release_loop()

    def _create(self, xml: str, flags: int) -> libvirt.virDomain:
        """In a thread of its own, which the embedded driver forks QEMU from."""
        handle = self._connection.handle
        if self._connection.embedded:
            reaper.expect()
            # A QEMU that was upgraded meanwhile is asked anew what it can, and libvirt's way of asking needs the
            # powers that go next. Answered from memory otherwise.
            handle.getDomainCapabilities(str(self._connection.emulator), "x86_64", "q35", None, 0)
            renounce_for_children()
        return handle.createXML(xml, flags)

    def _register(self, handle: libvirt.virConnect) -> int:
        callback: int = handle.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None
        )
        if not self._connection.embedded:
            handle.registerCloseCallback(self._on_close, None)
        return callback

    def _close(self, callback: int) -> None:
        handle = self._connection.handle
        with suppress(libvirt.libvirtError):
            handle.domainEventDeregisterAny(callback)
            if not self._connection.embedded:
                handle.unregisterCloseCallback()
        handle.close()

    def _forget(self, machine: Machine) -> None:
        if self._machines.get(machine.name) is machine:
            del self._machines[machine.name]

    def _on_lifecycle(
        self, _handle: libvirt.virConnect, domain: libvirt.virDomain, event: int, detail: int, _opaque: object
    ) -> None:
        """On libvirt's event thread."""
        with suppress(RuntimeError):  # the asyncio loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._dispatch, domain.name(), event, detail)

    def _dispatch(self, name: str, event: int, detail: int) -> None:
        machine = self._machines.get(name)
        if machine is not None:
            machine.on_event(event, detail)

    def _on_close(self, _handle: libvirt.virConnect, reason: int, _opaque: object) -> None:
        """On libvirt's event thread: the daemon went away."""
        self._lost = {
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "its daemon ended",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "its daemon stopped answering",
        }.get(reason, "closed")


async def _release_loop() -> None:
    with anyio.CancelScope(shield=True):
        await run_sync(loop.release)


async def _destroy_quietly(machine: Machine) -> None:
    # The process is closing down; the next one's sweep is told by the owner mark.
    with suppress(ProviderError):
        await machine.destroy()


def _check_host(spec: MachineSpec) -> None:
    """Blocking."""
    files = [spec.kernel, spec.initrd, *(disk.path for disk in spec.disks)]
    if spec.boot_file:
        files.append(spec.boot_file)
    for path in files:
        try:
            path.open("rb").close()
        except OSError as error:
            raise Unavailable(
                f"The file {path} of the box {spec.name} cannot be read ({error.strerror}); "
                "run `voidbox image build` again."
            ) from error
    needed, free = spec.memory_mb + QEMU_OVERHEAD_MB, available_memory_mb()
    if free is not None and free < needed:
        raise ProviderError(
            f"A box of {spec.memory_mb} MB needs {needed} MB of host memory and {free} MB are free; "
            "ask for a smaller box, or close other boxes.",
            cause="host-memory",
        )
