"""Watches a running box: whichever goes first, connection, device or machine, tells why the box is gone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import anyio

from voidbox_lab.box import trouble
from voidbox_lab.box.connection import Connection
from voidbox_lab.errors import Cancelled, VoidboxError
from voidbox_lab.machines import Gone, Machine
from voidbox_lab.vsock import Transport, UserTransport
from voidbox_lab.wire.protocol import OP_SHUTDOWN

VERDICT_S = 8.0
"""Seconds to learn how the machine ended once the connection has: a guest powers off, libvirt notices."""
SHUTDOWN_S = 2.0
"""Seconds the guest gets to write back its disk; the box is destroyed in any case."""


class Life:
    """One box's watch. `run` goes on until the box is gone or `end` was called.

    Args:
        libvirt_lost: why the connection to libvirt is gone, or None; see `machines.Hypervisor.lost`.
    """

    def __init__(
        self,
        box: str,
        connection: Connection,
        machine: Machine,
        transport: Transport,
        libvirt_lost: Callable[[], str | None],
    ) -> None:
        self._box = box
        self._libvirt_lost = libvirt_lost
        self._blame: VoidboxError | None = None
        self._connection, self._machine, self._transport = connection, machine, transport
        self._ended = ""
        self._gone: Gone | None = None
        self._vsock_died = False
        self._first = anyio.Event()
        self._machine_gone = anyio.Event()
        self._scope = anyio.CancelScope()
        self._finished = anyio.Event()
        self._ending = False

    @property
    def over(self) -> bool:
        """The box is gone, or going."""
        return self._ending or self._first.is_set()

    async def run(self) -> None:
        """Pump the connection and watch."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._pump)
                    tasks.start_soon(self._watch_machine)
                    if isinstance(self._transport, UserTransport):
                        tasks.start_soon(self._watch_device, self._transport)
                    await self._first.wait()
                    if not self._ending and not self._vsock_died:
                        with anyio.move_on_after(VERDICT_S):
                            await self._machine_gone.wait()
                    self._connection.fail(self._verdict())
                    tasks.cancel_scope.cancel()
        finally:
            self._connection.fail(self._verdict())
            self._finished.set()

    def blame(self, error: VoidboxError) -> None:
        """The box is about to be closed because of `error`, which its open calls are to say; not by its owner."""
        self._blame = self._blame or error

    async def end(self) -> None:
        """The box is closed: a last chance for the guest, then every open call is ended."""
        self._ending = True
        if not self._first.is_set():
            # Destroyed next in any case.
            with anyio.move_on_after(SHUTDOWN_S), suppress(VoidboxError):
                await self._connection.request(OP_SHUTDOWN, within_s=SHUTDOWN_S)
        self._connection.fail(self._verdict())
        self._scope.cancel()

    def _verdict(self) -> VoidboxError:
        if self._blame is not None:
            return self._blame
        if self._ending:
            return Cancelled(f"Box {self._box} was closed.", cause="closed")
        # A libvirt daemon that ends takes its clients' domains along (VIR_DOMAIN_START_AUTODESTROY).
        why = self._libvirt_lost()
        if why is not None and self._gone is not None and self._gone.reason in {"killed", "destroyed"}:
            return trouble.libvirt_lost(self._box, why)
        return trouble.lost(self._box, self._ended, self._gone, vsock_died=self._vsock_died)

    async def _pump(self) -> None:
        self._ended = await self._connection.run()
        self._first.set()

    async def _watch_machine(self) -> None:
        self._gone = await self._machine.wait_gone()
        self._machine_gone.set()
        self._first.set()

    async def _watch_device(self, transport: UserTransport) -> None:
        # 0 means that QEMU went first, which the machine's watch will tell.
        if await transport.wait_gone() != 0:
            self._vsock_died = True
            self._first.set()
