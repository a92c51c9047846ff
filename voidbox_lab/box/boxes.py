"""Makes boxes: directories, scratch disk, vsock, machine, handshake, policy; and takes them down again.

A box is built on an exit stack: whatever step fails or is cancelled, what came before is undone, shielded and
within bounds. What even that cannot undo (this process was killed) the next `machines.Hypervisor.sweep` finds by
its owner.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.box.box import Box
from voidbox_lab.box.connection import Connection, shake_hands
from voidbox_lab.box.life import Life
from voidbox_lab.box.scratch import copy_sparse
from voidbox_lab.box.trouble import last_lines
from voidbox_lab.errors import LimitExceeded, ProviderError, Unavailable
from voidbox_lab.machines import (
    BoxDirs,
    Disk,
    Hypervisor,
    Machine,
    MachineSpec,
    Owner,
    Verdict,
    claim,
    probe_accelerator,
)
from voidbox_lab.settings import Settings
from voidbox_lab.spec import BoxFacts, Policy
from voidbox_lab.vsock import KernelTransport, Stream, Transport, kernel_available, open_kernel, open_user
from voidbox_lab.wire import protocol as p

log = logging.getLogger(__name__)

BOOT_S = 180.0
"""Seconds from asking to a handshaken guest unless told otherwise: an emulated boot on a busy host is slow."""
STEP_S = 30.0
"""Seconds each step of taking a box down gets."""


class Boxes:
    """The boxes of this process. An async context manager: leaving it closes every box."""

    def __init__(self, settings: Settings, hypervisor: Hypervisor) -> None:
        self._settings, self._hypervisor = settings, hypervisor
        self._tasks: TaskGroup | None = None
        self._open: dict[str, Box] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._probing = anyio.Lock()
        self.booted = 0
        """Boxes that came up so far."""

    @classmethod
    @asynccontextmanager
    async def here(cls, settings: Settings) -> AsyncIterator[Boxes]:
        """`Boxes` with a hypervisor of their own, swept first."""
        hypervisor = await Hypervisor.open(settings)
        try:
            await hypervisor.sweep()
            async with cls(settings, hypervisor) as boxes:
                yield boxes
        finally:
            await hypervisor.aclose()

    async def __aenter__(self) -> Boxes:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as closing:
                for box in tuple(self._open.values()):
                    closing.start_soon(box.close)
        tasks, self._tasks = self._tasks, None
        tasks.cancel_scope.cancel()
        return await tasks.__aexit__(kind, error, trace)

    @property
    def running(self) -> int:
        """Boxes that are open."""
        return len(self._open)

    async def verdict(self, image: images.Image) -> Verdict:
        """The accelerator for boxes of `image`; probed once, by a real boot."""
        async with self._probing:
            if image.digest not in self._verdicts:
                self._verdicts[image.digest] = await probe_accelerator(self._settings, self._hypervisor, image)
            return self._verdicts[image.digest]

    async def open(
        self,
        *,
        memory_mb: int = 512,
        vcpus: int = 1,
        image: str = "default",
        agents: Sequence[str] = (),
        gateway_socket: Path | None = None,
        policy: Policy | None = None,
        timeout_s: float = BOOT_S,
    ) -> Box:
        """Boot a fresh box and put its policy in force.

        Args:
            agents: agent CLIs to add as layers, e.g. ``claude-code``; fetched the first time, which
                `timeout_s` does not cover.
            gateway_socket: the host UNIX socket behind ``127.0.0.1:8129`` in the box; None: no way out at all.
            timeout_s: from now to the handshake.

        Raises:
            Unavailable: this machine lacks an image, QEMU, libvirt or the vsock asked for.
            ProviderError: it did not boot; the message carries the console's last lines.
            LimitExceeded: not within `timeout_s` (limit ``time``).
            UserError: memory or vCPUs out of range; a policy that names a program the image lacks.
        """
        if self._tasks is None:
            raise ProviderError("Boxes are opened inside `async with Boxes(...)`.", cause="closed")
        found = await self._image(image, agents)
        verdict = await self.verdict(found)
        stack = AsyncExitStack()
        try:
            began = time.monotonic()
            birth = _Birth(self._settings, self._hypervisor, stack, f"vb-{secrets.token_hex(5)}")
            await birth.prepare(found, gateway_socket)
            await birth.boot(found, verdict, memory_mb, vcpus, began + timeout_s)
            facts = BoxFacts(
                isolation=verdict.accelerator,
                vsock=birth.transport.kind,
                domain=birth.id,
                image=found.digest,
                memory_mb=memory_mb,
                vcpus=vcpus,
                boot_s=round(time.monotonic() - began, 3),
            )
            life = Life(birth.id, birth.connection, birth.machine, birth.transport)
            stack.push_async_callback(life.end)
            self._tasks.start_soon(life.run)
            closer = _Closer(stack, life, lambda: self._open.pop(birth.id, None))
            box = Box(birth.connection, facts, closer.close, birth.phases)
            await birth.settle(box, policy or Policy(), gateway_socket is not None)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
            raise
        self._open[birth.id] = box
        self.booted += 1
        if self._settings.boot_log is not None:
            await run_sync(_append, self._settings.boot_log, facts.model_dump_json())
        return box

    async def _image(self, name: str, agents: Sequence[str]) -> images.Image:
        found = await run_sync(images.resolve, self._settings, name)
        for agent in agents:
            found = await run_sync(images.add_agent, self._settings, found, agent)
        return found


class _Birth:
    """One box on its way up. Each step leaves its undoing on the stack."""

    transport: Transport
    machine: Machine
    connection: Connection

    def __init__(self, settings: Settings, hypervisor: Hypervisor, stack: AsyncExitStack, box: str) -> None:
        self._settings, self._hypervisor, self._stack = settings, hypervisor, stack
        self.id = box
        self.phases: dict[str, float] = {}
        self._mark = time.monotonic()
        self._owner = Owner.current(settings, box)
        self._secret = secrets.token_bytes(32)
        self._dirs = BoxDirs.of(settings, box)

    def _phase(self, name: str) -> None:
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

    async def prepare(self, image: images.Image, gateway_socket: Path | None) -> None:
        """Directories, scratch disk, vsock, boot file."""
        dirs = await run_sync(claim, self._settings, self._owner)
        self._undo("its directories", lambda: run_sync(dirs.remove))
        await run_sync(copy_sparse, image.scratch, dirs.cache / "scratch.img")
        self.transport = await _transport(self._settings, dirs.runtime)
        self._undo("its vsock", self.transport.aclose)
        self._listener = self.transport.listen()
        gateway_port = self.transport.forward(0, gateway_socket) if gateway_socket is not None else 0
        self._gateway_port = gateway_port
        data = {
            "version": 1,
            "secret": self._secret.hex(),
            "hostname": self.id,
            "control_port": self._listener.port,
            "gateway_port": gateway_port,
            "entropy": secrets.token_hex(64),
            "time_ns": time.time_ns(),
        }
        await run_sync(_write_private, dirs.runtime / "boot.json", json.dumps(data).encode())
        self._phase("prepare")

    async def boot(
        self, image: images.Image, verdict: Verdict, memory_mb: int, vcpus: int, deadline: float
    ) -> None:
        """Start the machine, await the guest's call, shake hands."""
        layers = tuple(Disk(layer.path, True, f"layer{i}") for i, layer in enumerate(image.layers))
        spec = MachineSpec(
            name=self.id,
            memory_mb=memory_mb,
            vcpus=vcpus,
            kernel=image.kernel,
            initrd=image.initrd,
            cmdline=image.arguments(verdict.accelerator),
            disks=(*layers, Disk(self._dirs.cache / "scratch.img", False, "scratch")),
            vsock=self.transport.domain(),
            boot_file=self._dirs.runtime / "boot.json",
            console_log=self._dirs.runtime / "console.log",
            accelerator=verdict.accelerator,
            owner=self._owner,
        )
        self.machine = await self._hypervisor.start(spec, max(1.0, deadline - time.monotonic()))
        self._undo("its domain", self.machine.destroy)
        if isinstance(self.transport, KernelTransport) and self.machine.cid is not None:
            self.transport.assigned(self.machine.cid)
        self._phase("start")
        stream = await self._dialled(deadline)
        self._undo("its connection", stream.aclose)
        self._listener.close()
        self._phase("dial")
        decoder, frames = await shake_hands(stream, self._secret)
        self.connection = Connection(stream, decoder, frames)
        self._phase("handshake")

    async def _dialled(self, deadline: float) -> Stream:
        """The guest's call, or why there will be none."""
        bound = max(1.0, deadline - time.monotonic())
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

    async def settle(self, box: Box, policy: Policy, gateway: bool) -> None:
        """Policy and proxy, once the connection is running."""
        # The boot data's time is as old as the boot, which may have been a slow one.
        await self.connection.request(p.OP_IDENTITY, time_ns=time.time_ns())
        await box.apply(policy)
        if gateway:
            await self.connection.request(p.OP_PROXY, listen=p.PROXY_PORT, port=self._gateway_port)
        facts = (await self.connection.request(p.OP_PING)).get("boot")
        self._phase("policy")
        if isinstance(facts, dict):
            started, dialled = facts.get("pid1_s"), facts.get("dialled_s")
            if isinstance(started, float) and isinstance(dialled, float):
                self.phases |= {"kernel": round(started, 3), "agent": round(dialled - started, 3)}
        box.phases = self.phases


class _Closer:
    """Closes a box once; every later caller waits for the first."""

    def __init__(self, stack: AsyncExitStack, life: Life, forget: Callable[[], object]) -> None:
        self._stack, self._life, self._forget = stack, life, forget
        self._lock = anyio.Lock()
        self._closed = False

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if not self._closed:
                    self._closed = True
                    await self._stack.aclose()
                    self._forget()


async def _transport(settings: Settings, box_dir: Path) -> Transport:
    if settings.vsock != "user":
        reason = kernel_available()
        if reason is None:
            return await open_kernel(box_dir)
        if settings.vsock == "kernel":
            raise Unavailable(f"VOIDBOX_VSOCK=kernel, but {reason}")
    return await open_user(box_dir)


def _append(path: Path, line: str) -> None:
    """Blocking. One write, so that lines of several processes do not mix."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode() + b"\n")
    finally:
        os.close(fd)


def _write_private(path: Path, data: bytes) -> None:
    """Blocking."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
