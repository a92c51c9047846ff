"""One box on its way up: cold, or as a clone of a template. Not for which of the two, which is `boxes`' business.

Whatever step fails or is cancelled, what came before is undone, shielded and within bounds. What even that cannot
undo (this process was killed) the next `machines.Hypervisor.sweep` finds by its owner.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from voidbox_lab.box.boot_data import boot_data
from voidbox_lab.box.connection import Connection, shake_hands
from voidbox_lab.box.egress import SOCKET, OpenEgress
from voidbox_lab.box.life import Life
from voidbox_lab.box.mounting import unmount
from voidbox_lab.box.trouble import first_error, last_lines
from voidbox_lab.errors import LimitExceeded, ProviderError, Unavailable, VoidboxError
from voidbox_lab.machines import BoxDirs, Held, Hypervisor, Machine, MemoryFile, Owner, Recipe, Resident, claim
from voidbox_lab.machines.sparse import copy_sparse, fill_sparse
from voidbox_lab.machines.templates.resident import check_room
from voidbox_lab.settings import Settings
from voidbox_lab.vsock import (
    KernelTransport,
    Stream,
    Transport,
    UserTransport,
    kernel_available,
    open_kernel,
    start_user,
)

log = logging.getLogger(__name__)

STEP_S = 30.0
"""Seconds each step of taking a box down gets."""
WAKE_S = 60.0
"""Seconds from a clone's first instruction to its call; 0.2 on a quiet host."""
FIRST_CID, CIDS = 3, 0xFFFFFFFF - 3
"""Guests' addresses (vsock(7)); boxes with a user-space device get one at random, so that logs tell them apart."""

DISK_LOCKED = "disk-locked"
"""Another QEMU has a volume's disk open."""
NOT_THE_CLONES = {"host-memory", "libvirt-lost", "timeout"}
"""Causes for which a cold boot would fail as well."""


class NotRestored(ProviderError):
    """No clone could be made; a cold boot may work."""


class BrokenTemplate(NotRestored):
    """QEMU refused the saved state, or the guest did not wake up from it: the template may be to blame."""


class Birth:
    """One box until somebody owns it. `cold` or `clone` brings it up, `undo` takes it down."""

    transport: Transport
    machine: Machine
    connection: Connection

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        recipe: Recipe,
        undone: Callable[[Birth], object] = lambda _: None,
    ) -> None:
        """`undone` is called once nothing of it is left."""
        self._settings, self._hypervisor, self.recipe = settings, hypervisor, recipe
        self._undone = undone
        self._stack = AsyncExitStack()
        self._closing = anyio.Lock()
        self._closed = False
        self.id = f"vb-{secrets.token_hex(5)}"
        self.phases: dict[str, float] = {}
        self._mark = time.monotonic()
        self._owner = Owner.current(settings, self.id)
        self._secret = secrets.token_bytes(32)
        self._dirs = BoxDirs.of(settings, self.id)
        self.life: Life | None = None
        self.held: Held | None = None
        """Its volumes, once they are nobody else's: let go when nothing is left of it."""
        self._volumes = False
        self._ram = -1
        """Of a clone's own memory file, from before it has one until the box is gone; -1 without."""
        self._ram_size = 0

    @property
    def held_bytes(self) -> int:
        """What its memory takes of the tmpfs now; 0 where it is none of its own there."""
        return os.fstat(self._ram).st_blocks * 512 if self._ram >= 0 else 0

    @property
    def promised_bytes(self) -> int:
        """What it may still take, without asking again."""
        return max(0, self._ram_size - self.held_bytes)

    @property
    def alive(self) -> bool:
        """It came up and has not ended since."""
        return not self._closed and self.life is not None and not self.life.over

    async def cold(self, deadline: float, held: Held | None = None) -> None:
        """Boot the image's kernel.

        Args:
            held: its volumes.
            deadline: of the guest's call, by `time.monotonic`.

        Raises:
            ProviderError: it did not boot; the message carries the console's last lines.
            LimitExceeded: not by the deadline.
        """
        await self._claim()
        await run_sync(copy_sparse, self.recipe.image.scratch, self._dirs.cache / "scratch.img")
        await self._open_transport()
        await self.transport.ready()
        self.mark("prepare")
        disks = tuple(held.disks) if held else ()
        spec = self.recipe.spec(self._dirs, self._owner, vsock=self.transport.domain(), volumes=disks)
        await self._start(lambda: self._hypervisor.start(spec, _left(deadline)))
        self.mark("start")
        await self._meet(deadline)
        await self._has(held)

    async def clone(self, resident: Resident, deadline: float, promised: Callable[[], int]) -> None:
        """Restore `resident`: libvirt's part takes longest, so memory and device are made ready beside it.

        Args:
            promised: bytes of the tmpfs that other boxes may still take.

        Raises:
            NotRestored: the template, or what holds its memory, may be to blame.
            ProviderError, LimitExceeded: as `cold`.
        """
        await self._claim()
        await self._open_transport()
        vsock = self.transport.domain()
        # A vhost-user device reads and writes guest memory from outside, and a private mapping would hide it.
        copied = vsock.kind == "user"
        memory = MemoryFile(self._dirs.memory / "ram" if copied else resident.path / "memory", shared=copied)
        if copied:
            # It grows with what the guest uses, and QEMU dies (SIGBUS) where the tmpfs cannot.
            size = self.recipe.memory_mb << 20
            await self._copied(check_room, self._settings.shm, size + promised())
            self._ram_size = size
            await self._copied(self._make_memory, memory.path)
        await self._copied(_from_resident, copy_sparse, resident, "scratch", self._dirs.cache / "scratch.img")
        self.mark("prepare")
        spec = self.recipe.spec(self._dirs, self._owner, vsock=vsock, memory=memory, incoming=True)
        try:
            async with anyio.create_task_group() as tasks:
                if copied:
                    # QEMU looks at memory only once it was told to go on.
                    tasks.start_soon(self._copied, _from_resident, fill_sparse, resident, "memory", memory.path)
                tasks.start_soon(self.transport.ready)
                await self._start(lambda: self._hypervisor.start(spec, _left(deadline)))
        except BaseExceptionGroup as group:
            error = first_error(group)
            if isinstance(error, ProviderError) and error.cause not in NOT_THE_CLONES:
                raise NotRestored(error.message, cause=error.cause) from error
            raise error from None
        self.mark("start")
        # QEMU has it open; without its name nothing can leave it behind.
        await run_sync(_forget_name, self._dirs.memory)
        try:
            state = await run_sync(resident.open, "state")
        except (OSError, ProviderError) as error:
            raise NotRestored(f"The state of a clone cannot be read: {error}", cause="shm") from error
        try:
            await self.machine.restore(state, _left(deadline))
            self.mark("restore")
            await self._meet(min(deadline, time.monotonic() + WAKE_S))
        except (ProviderError, LimitExceeded) as error:
            late = isinstance(error, LimitExceeded) and time.monotonic() >= deadline
            if late or error.cause in NOT_THE_CLONES:
                raise
            raise BrokenTemplate(error.message, cause=error.cause or "restore") from error
        finally:
            os.close(state)

    async def _copied(self, copy: Callable[..., None], *args: Any) -> None:
        try:
            await run_sync(copy, *args)
        except (ProviderError, OSError) as error:
            raise NotRestored(f"The memory of a clone could not be made: {error}", cause="shm") from error

    def _make_memory(self, path: Path) -> None:
        """Blocking. Of the size that QEMU wants to see; what is in it comes later."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._ram = fd
        self._stack.callback(self._close_memory)
        os.ftruncate(fd, self._ram_size)

    def _close_memory(self) -> None:
        os.close(self._ram)
        self._ram = -1

    async def plug(self, held: Held | None) -> None:
        """Give a clone its volumes.

        Raises:
            NotRestored: they could not be plugged in; a cold boot has them from the start.
            ProviderError: a cold boot would fail as well.
        """
        if held is not None:
            try:
                await self.machine.plug(held.disks)
            except ProviderError as error:
                if error.cause in {DISK_LOCKED, *NOT_THE_CLONES}:
                    raise
                raise NotRestored(f"A volume could not be plugged into a clone: {error.message}") from error
            await self._has(held)

    async def _has(self, held: Held | None) -> None:
        if held is not None:
            self._volumes = True
            await run_sync(held.name, self.id)

    def live(self, tasks: TaskGroup) -> None:
        """Watch the box from now on, in `tasks`."""
        self.life = Life(self.id, self.connection, self.machine, self.transport, lambda: self._hypervisor.lost)
        self._stack.push_async_callback(self.life.end)
        self._undo("its volumes", self._let_go)
        tasks.start_soon(self.life.run)

    def blame(self, error: VoidboxError) -> None:
        """It is about to be closed because of `error`, and not by its owner."""
        if self.life is not None:
            self.life.blame(error)

    async def undo(self) -> None:
        """Take down whatever is up. Idempotent, bounded, completes if cancelled; later callers wait."""
        with anyio.CancelScope(shield=True):
            async with self._closing:
                if not self._closed:
                    self._closed = True
                    await self._stack.aclose()
                    self._ram_size = 0
                    if self.held is not None:
                        await run_sync(self.held.close)
                    self._undone(self)

    async def let_out(self, egress: OpenEgress) -> int:
        """Have `egress` served until the box goes; the vsock port by which the guest reaches it."""
        path = self._dirs.runtime / SOCKET
        self._undo("its way out", await egress(path))
        return self.transport.forward(0, path)

    # steps

    async def _let_go(self) -> None:
        """Everything the guest wrote, on its volumes."""
        if self._volumes and self.life is not None and not self.life.over:
            await unmount(self.connection)

    def begin_phase(self) -> None:
        """What is measured next begins now, not at the end of the last phase."""
        self._mark = time.monotonic()

    def mark(self, name: str) -> None:
        """The phase `name` ended now."""
        now = time.monotonic()
        self.phases[name] = round(now - self._mark, 4)
        self._mark = now

    def _undo(self, what: str, step: Callable[[], Any]) -> None:
        async def bounded() -> None:
            with anyio.move_on_after(STEP_S, shield=True) as bound:
                try:
                    await step()
                except Exception:
                    # The rest must be taken down all the same; the next sweep finds this.
                    log.exception("taking down box %s: %s failed", self.id, what)
            if bound.cancelled_caught:
                log.error("taking down box %s: %s took longer than %g s", self.id, what, STEP_S)

        self._stack.push_async_callback(bounded)

    async def _claim(self) -> None:
        dirs = await run_sync(claim, self._settings, self._owner)
        self._undo("its directories", lambda: run_sync(dirs.remove))

    async def _open_transport(self) -> None:
        """vsock, and the boot data, which names the port to call."""
        self.transport = await _transport(self._settings, self._dirs.runtime)
        self._undo("its vsock", self.transport.aclose)
        self._listener = self.transport.listen()
        data = boot_data(self.id, self._listener.port, self._secret)
        await run_sync(_write_private, self._dirs.runtime / "boot.json", data)

    async def _start(self, start: Callable[[], Any]) -> None:
        self.machine = await start()
        self._undo("its domain", self.machine.destroy)

    async def _meet(self, deadline: float) -> None:
        """Await the guest's call and shake hands."""
        if isinstance(self.transport, KernelTransport) and self.machine.cid is not None:
            self.transport.assigned(self.machine.cid)
        stream = await self._dialled(deadline)
        self._undo("its connection", stream.aclose)
        self._listener.close()
        self.mark("dial")
        decoder, frames = await shake_hands(stream, self._secret)
        self.connection = Connection(stream, decoder, frames)
        self.mark("handshake")

    async def _dialled(self, deadline: float) -> Stream:
        """The guest's call, or why there will be none."""
        bound = _left(deadline)
        calls: list[Stream] = []
        ends: list[str] = []

        async def accept(scope: anyio.CancelScope) -> None:
            calls.append(await self._listener.accept(None))
            scope.cancel()

        async def watch(scope: anyio.CancelScope) -> None:
            gone = await self.machine.wait_gone()
            ends.append(f"{gone.reason}; its console ended with: {last_lines(gone.console_tail) or 'nothing'}")
            scope.cancel()

        with anyio.move_on_after(bound):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(accept, tasks.cancel_scope)
                tasks.start_soon(watch, tasks.cancel_scope)
        if calls:
            return calls[0]
        if ends:
            raise ProviderError(f"Box {self.id} ended while it booted: {ends[0]}.", cause="boot")
        tail = last_lines(self.machine.console_tail()) or "nothing"
        raise LimitExceeded(
            f"Box {self.id} did not come up within {bound:.0f} s; its console ended with: {tail}.",
            limit="time",
            value=round(bound, 1),
            unit="s",
            cause="boot",
        )


def _left(deadline: float) -> float:
    return max(1.0, deadline - time.monotonic())


async def _transport(settings: Settings, box_dir: Path) -> Transport:
    if settings.vsock != "user":
        reason = kernel_available()
        if reason is None:
            return await open_kernel(box_dir)
        if settings.vsock == "kernel":
            raise Unavailable(f"VOIDBOX_VSOCK=kernel, but {reason}")
    cid = FIRST_CID + secrets.randbelow(CIDS)
    transport: UserTransport = await start_user(box_dir, cid=cid)
    return transport


def _from_resident(copy: Callable[[int, Path], None], resident: Resident, name: str, target: Path) -> None:
    """Blocking."""
    source = resident.open(name)
    try:
        copy(source, target)
    finally:
        os.close(source)


def _forget_name(directory: Path) -> None:
    """Blocking."""
    shutil.rmtree(directory, ignore_errors=True)


def _write_private(path: Path, data: bytes) -> None:
    """Blocking."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
