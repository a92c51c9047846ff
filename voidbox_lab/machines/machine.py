"""One running domain: how it ends, or is ended. Not for what happens inside it, which is `voidbox_lab.box`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from voidbox_lab.errors import ProviderError
from voidbox_lab.machines import processes, saving
from voidbox_lab.machines.calls import call, libvirt, libvirt_qemu
from voidbox_lab.machines.console import Console
from voidbox_lab.machines.domain import console_socket, render_volume, vsock_cid
from voidbox_lab.machines.spec import Disk, Gone, GoneReason, MachineSpec

CALL_TIMEOUT_S = 30.0
"""For calls that only look at libvirt's own state."""
SAVE_TIMEOUT_S = 60.0
RESTORE_TIMEOUT_S = 60.0
PLUG_TIMEOUT_S = 20.0
QUIT_TIMEOUT_S = 3.0
DESTROY_TIMEOUT_S = 15.0
KILL_TIMEOUT_S = 5.0
EOF_GRACE_S = 0.5
"""QEMU's end of the console closed: how long libvirt may take to say why."""
CONSOLE_GRACE_S = 1.0
"""The domain ended: how long its last console output may take."""
_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
PANIC = "Kernel panic - not syncing"

_STOPPED: dict[int, GoneReason] = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "killed",
}


class Machine:
    """A domain started by this process. Made by `Hypervisor.start`; use it on the asyncio thread."""

    def __init__(self, spec: MachineSpec, forget: Callable[[Machine], None]) -> None:
        self.name = spec.name
        self.spec = spec
        self.cid: int | None = spec.vsock.cid if spec.vsock else None
        """The guest's vsock address."""
        self._console = Console(spec.console_log, console_socket(spec), self._on_console_end)
        self._forget = forget
        self._domain: libvirt.virDomain | None = None
        self._loop = asyncio.get_running_loop()
        self._stopped = anyio.Event()
        self._reason: GoneReason = "killed"
        self._gone: Gone | None = None
        self._destroying = False
        self._destroy_lock = anyio.Lock()

    @property
    def pid(self) -> int | None:
        """QEMU's process id; None where libvirt runs it out of sight."""
        return self._console.pid

    @property
    def running(self) -> bool:
        """False once the domain has ended."""
        return not self._stopped.is_set()

    def console_tail(self, size: int = 4096) -> str:
        """The last `size` bytes of the guest's console, cleaned of control characters."""
        return self._console.tail(size)

    async def wait_said(self, line: str, timeout_s: float) -> bool:
        """Wait until the guest wrote `line` to its console; False when it ended or `timeout_s` passed first."""
        said = self._console.said(line)

        async def ended(scope: anyio.CancelScope) -> None:
            await self._stopped.wait()
            scope.cancel()

        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ended, tasks.cancel_scope)
                await said.wait()
                tasks.cancel_scope.cancel()
        return said.is_set()

    async def save(self, target: Path, timeout_s: float = SAVE_TIMEOUT_S) -> None:
        """Stop the machine for good and write its device state to `target`; see `saving.save`.

        Raises:
            ProviderError: libvirt or QEMU failed, the disk is full, or it took longer than `timeout_s`.
        """
        await call("save the machine", timeout_s + 1, saving.save, self._running_domain, target, timeout_s)

    async def restore(self, state: int, timeout_s: float = RESTORE_TIMEOUT_S) -> None:
        """Load a saved device state, plug vsock in and let the machine run; see `saving.restore`.

        Args:
            state: a descriptor at the state's beginning; the caller closes it, whenever it likes.

        Raises:
            ProviderError: libvirt or QEMU failed, or it took longer than `timeout_s`.
        """
        domain, vsock = self._running_domain, self.spec.vsock
        # The thread may outlive this call, and then its number must not have become another file's.
        own = os.dup(state)

        def restore() -> None:
            try:
                saving.restore(domain, own, vsock, timeout_s)
            finally:
                os.close(own)

        await call("restore a machine", timeout_s + 1, restore)
        await self.read_cid()

    async def plug(self, volumes: Sequence[Disk]) -> None:
        """Give a running machine that has `MachineSpec.memory` its volumes, all of them at once.

        Raises:
            ProviderError: libvirt or QEMU failed, or took longer than `PLUG_TIMEOUT_S`; another QEMU has a disk
                open (cause ``disk-locked``).
        """
        domain = self._running_domain
        for index, disk in enumerate(volumes):
            xml = render_volume(self.spec, disk, index)
            await call("plug in a volume", PLUG_TIMEOUT_S, domain.attachDeviceFlags, xml, _LIVE)

    async def read_cid(self) -> None:
        """For `Hypervisor`: learn the address that libvirt gave a kernel vsock device."""
        if self.spec.vsock is not None and self.spec.vsock.kind == "kernel":
            domain = self._running_domain
            self.cid = vsock_cid(await call("describe the machine", CALL_TIMEOUT_S, domain.XMLDesc, 0))

    @property
    def _running_domain(self) -> libvirt.virDomain:
        if self._domain is None:
            raise ProviderError(f"The machine {self.name} has not started.", cause="libvirt")
        return self._domain

    async def wait_gone(self) -> Gone:
        """Wait, without bound, until the domain has ended; how. Any number of waiters."""
        await self._stopped.wait()
        if self._gone is None:
            with anyio.move_on_after(CONSOLE_GRACE_S):
                await self._console.ended.wait()
            self._gone = Gone(self._verdict(), self._console.tail())
        return self._gone

    async def destroy(self) -> None:
        """End the domain now and release what it held. Idempotent; completes even if cancelled.

        Raises:
            ProviderError: QEMU is still there after `QUIT_TIMEOUT_S` + `DESTROY_TIMEOUT_S` + `KILL_TIMEOUT_S`.
        """
        with anyio.CancelScope(shield=True):
            async with self._destroy_lock:
                self._destroying = self._destroying or self.running
                try:
                    for way, bound in (
                        (self._quit, QUIT_TIMEOUT_S),
                        (self._destroy_domain, DESTROY_TIMEOUT_S),
                        (self._kill, KILL_TIMEOUT_S),
                    ):
                        if not self.running and not self._console.peer_alive:
                            break
                        with anyio.move_on_after(bound):
                            await way(bound)
                            await self._stopped.wait()
                            await self._console.wait_exit()  # or its files are still open
                finally:
                    still_there = self.running or self._console.peer_alive
                    if not self.running:
                        await self.wait_gone()  # the last words, before the console closes
                    self._console.close()
                    self._forget(self)
                if still_there:
                    raise ProviderError(
                        f"QEMU of {self.name} (pid {self.pid}) is still there "
                        f"{QUIT_TIMEOUT_S + DESTROY_TIMEOUT_S + KILL_TIMEOUT_S:g} s after its end was asked for; "
                        "kill it and run `voidbox gc`.",
                        cause="timeout",
                    )

    async def _quit(self, bound: float) -> None:
        """Tell QEMU itself: libvirt's own way is SIGTERM and a poll, a second slower."""
        if self._domain is None:
            return
        with suppress(ProviderError):
            await call(
                "ask QEMU to quit", bound, libvirt_qemu.qemuMonitorCommand, self._domain, '{"execute":"quit"}', 0
            )

    async def _destroy_domain(self, bound: float) -> None:
        if self._domain is None:
            return
        with suppress(ProviderError):
            await call(f"destroy {self.name}", bound, self._domain.destroy)

    async def _kill(self, bound: float) -> None:
        await run_sync(processes.end_box, self.spec.console_log.parent, bound, abandon_on_cancel=True)

    def _on_console_end(self) -> None:
        """QEMU is gone, then: nothing else closes the console's far end.

        libvirt says so too, but only after it saw the process reaped, seconds later in a container whose
        first process is slow at that; or never, should its daemon be gone as well.
        """
        self._loop.call_later(0 if self._destroying else EOF_GRACE_S, self._stopped.set)

    def listen(self) -> None:
        """For `Hypervisor`: be ready for QEMU's call.

        Raises:
            ProviderError: the console cannot be opened.
        """
        self._console.listen()

    async def attach(self, domain: libvirt.virDomain) -> None:
        """For `Hypervisor`: the domain exists."""
        self._domain = domain
        with anyio.move_on_after(CONSOLE_GRACE_S):  # QEMU dialled before it ran; only our turn is due
            await self._console.connected.wait()

    def abandon(self) -> None:
        """For `Hypervisor`: the domain never came to be."""
        self._console.close()
        self._forget(self)

    def on_event(self, event: int, detail: int) -> None:
        """For `Hypervisor`: a lifecycle event (virDomainEventType and its detail), on the asyncio thread."""
        if event == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN:
            # QEMU tells a guest's power-off from a signal it was sent (QMP SHUTDOWN, "guest").
            self._reason = "killed" if detail == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST else "shutdown"
        elif event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            if detail != libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN:  # that was told apart above, by who asked
                self._reason = _STOPPED.get(detail, "killed")
            self._stopped.set()
        elif event == libvirt.VIR_DOMAIN_EVENT_CRASHED:
            self._reason = "crashed"
            self._stopped.set()

    def _verdict(self) -> GoneReason:
        if self._destroying:
            return "destroyed"
        if self._reason in {"shutdown", "crashed"} and PANIC in self._console.tail(16 << 10):
            return "panic"
        return self._reason
