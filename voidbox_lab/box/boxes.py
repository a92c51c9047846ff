"""Makes boxes: as clones of a template, ready beforehand where the next was foreseen, else by booting them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.box.birth import DISK_LOCKED, Birth, BrokenTemplate, NotRestored
from voidbox_lab.box.boot_data import TEMPLATE_BOOT_DATA
from voidbox_lab.box.box import Box
from voidbox_lab.box.composing import composed
from voidbox_lab.box.egress import OpenEgress
from voidbox_lab.box.mounting import Unseen
from voidbox_lab.box.pool import Pool
from voidbox_lab.box.settle import rehearse, settle
from voidbox_lab.box.trouble import libvirt_lost
from voidbox_lab.errors import BoxLost, LimitExceeded, ProviderError
from voidbox_lab.machines import Held, Hypervisor, Recipe, Resident, Templates, Verdict, Volumes, probe_accelerator
from voidbox_lab.machines.hostmemory import QEMU_OVERHEAD_MB
from voidbox_lab.machines.templates.resident import NoRoom, check_room
from voidbox_lab.settings import Settings
from voidbox_lab.spec import BoxFacts, Policy, Rootfs
from voidbox_lab.spec.run import BoxStart
from voidbox_lab.spec.volume import Mount
from voidbox_lab.wire import protocol as p

log = logging.getLogger(__name__)

BOOT_S = 180.0
"""Seconds from asking to a handshaken guest unless told otherwise: an emulated boot on a busy host is slow."""
AT_ONCE = max(2, len(os.sched_getaffinity(0)))
"""Boxes that start at the same time: more would only make each of them late."""


class Boxes:
    """The boxes of this process. An async context manager: leaving it closes every box."""

    def __init__(self, settings: Settings, hypervisor: Hypervisor) -> None:
        self._settings, self.hypervisor = settings, hypervisor
        self._tasks: TaskGroup | None = None
        self._open: set[Birth] = set()
        self._births = 0
        self._alive: set[Birth] = set()
        """All that have or may have a machine: open, on their way, spare."""
        self._verdicts: dict[str, Verdict] = {}
        self._probing = anyio.Lock()
        self._starting = anyio.Semaphore(AT_ONCE)
        self.templates = Templates(settings, hypervisor, TEMPLATE_BOOT_DATA, p.TEMPLATE_LINE)
        self.pool = Pool(self._spare, settings.spares if settings.warm == "auto" else 0)
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
        self._tasks.start_soon(self.pool.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        for birth in self._alive:
            # Nobody's wish, then: who cancels a stage ends its task, not the box under it.
            if self.hypervisor.lost:
                birth.blame(libvirt_lost(birth.id, self.hypervisor.lost))
            elif isinstance(error, Exception):
                why = f"its keeper failed ({type(error).__name__}); please report it"
                birth.blame(BoxLost(f"Box {birth.id} was closed because {why}.", cause="internal"))
        with anyio.CancelScope(shield=True):
            await self.pool.aclose()
            async with anyio.create_task_group() as closing:
                for birth in tuple(self._alive):
                    closing.start_soon(self._close, birth)
            await self.templates.aclose()
        tasks, self._tasks = self._tasks, None
        tasks.cancel_scope.cancel()
        # Not told of `error`, which goes on as it is instead of in a group of one.
        await tasks.__aexit__(None, None, None)

    @property
    def running(self) -> int:
        """Boxes that are open, and openings that go on; not spare ones."""
        return len(self._open) + self._births

    async def verdict(self, image: images.Image) -> Verdict:
        """The accelerator for boxes of `image`; probed once, by a real boot."""
        async with self._probing:
            if image.digest not in self._verdicts:
                self._verdicts[image.digest] = await probe_accelerator(self._settings, self.hypervisor, image)
            return self._verdicts[image.digest]

    async def recipe(self, *, memory_mb: int = 512, vcpus: int = 1, rootfs: Rootfs | None = None) -> Recipe:
        """What a box of these is made by; see `open`."""
        found = await composed(self._settings, rootfs or Rootfs())
        return Recipe(found, memory_mb, vcpus, (await self.verdict(found)).accelerator)

    async def open(
        self,
        *,
        memory_mb: int = 512,
        vcpus: int = 1,
        rootfs: Rootfs | None = None,
        gateway_socket: Path | None = None,
        policy: Policy | None = None,
        volumes: Sequence[Mount] = (),
        egress: OpenEgress | None = None,
        timeout_s: float = BOOT_S,
    ) -> Box:
        """Bring up a fresh box and put its policy in force.

        Args:
            rootfs: its image, and the layers to add to it; None: the default image as it is.
            gateway_socket: the host UNIX socket behind ``127.0.0.1:8129`` in the box; None: no way to a model.
            volumes: named volumes and where the box has them; locked until it is closed.
            egress: the way out besides the model, behind ``127.0.0.1:8130`` in the box; None: there is none.
            timeout_s: to the handshake. Not in it: what is done once, the fetching of an agent's layer and
                the making of a template; and waiting for others that start.

        Raises:
            Unavailable: this machine lacks an image, QEMU, libvirt or the vsock asked for.
            ProviderError: it did not boot; the message carries the console's last lines.
            LimitExceeded: not within `timeout_s` (limit ``time``).
            UserError: memory or vCPUs out of range; a policy that names a program the image lacks; a volume that
                there is none of, that is in use (cause ``volume-in-use``) or cannot be mounted.
        """
        if self._tasks is None:
            raise ProviderError("Boxes are opened inside `async with Boxes(...)`.", cause="closed")
        self._births += 1
        try:
            held = self._hold(volumes)
            try:
                recipe = await self.recipe(memory_mb=memory_mb, vcpus=vcpus, rootfs=rootfs)
                wish = _Wish(recipe, gateway_socket, policy or Policy(), held, egress)
                box = await self._spare_box(wish) or await self._new_box(wish, timeout_s)
            except BaseException:
                # Whatever had them is undone.
                if held is not None:
                    held.close()
                raise
        finally:
            self._births -= 1
        self.booted += 1
        if self._settings.boot_log is not None:
            await run_sync(_append, self._settings.boot_log, box.facts.model_dump_json())
        return box

    def _hold(self, volumes: Sequence[Mount]) -> Held | None:
        if not volumes:
            return None
        # Not in a thread: it would run on when its caller is cancelled, with nobody to let go. A few files only.
        return Volumes(self._settings).hold(volumes)

    async def _spare_box(self, wish: _Wish) -> Box | None:
        """A spare as a box of its own; None when there is none that still answers."""
        self.pool.asked(wish.recipe)
        while birth := self.pool.claim(wish.recipe):
            began = time.monotonic()
            try:
                await self._plugged(birth, wish.held)
                return await self._settled(birth, wish, began, "spare", "")
            except (ProviderError, LimitExceeded) as error:
                if error.cause == DISK_LOCKED:
                    raise
                # It was well when it was last looked at; that is no reason to fail a stage.
                log.warning("a spare box failed as it was claimed: %s", error.message)
                if wish.held is not None:
                    return None  # what is on a volume may be to blame, and is not to cost every spare
        return None

    async def _plugged(self, birth: Birth, held: Held | None) -> None:
        try:
            await birth.plug(held)
        except BaseException:
            await birth.undo()
            raise

    async def _new_box(self, wish: _Wish, timeout_s: float) -> Box:
        warm = self._settings.warm == "auto"
        note = ""
        while True:
            async with self._starting:
                began = time.monotonic()
                await self._make_room(wish.recipe)
                birth, start, why = await self._bear(wish, timeout_s, warm=warm)
            try:
                return await self._settled(birth, wish, began, start, note or why)
            except Unseen as error:
                if start == "cold":
                    raise
                log.warning("booting a box instead of cloning it: %s", error.message)
                warm, note = False, error.message

    async def _settled(self, birth: Birth, wish: _Wish, began: float, start: BoxStart, note: str) -> Box:
        """`birth` as a box with its volumes mounted and its policy in force."""
        recipe = birth.recipe
        try:
            facts = BoxFacts(
                isolation=recipe.accelerator,
                vsock=birth.transport.kind,
                domain=birth.id,
                image=recipe.image.digest,
                memory_mb=recipe.memory_mb,
                vcpus=recipe.vcpus,
                boot_s=0.0,
                start=start,
                start_note=note,
            )
            box = Box(birth.connection, facts, lambda: self._close(birth), birth.phases, birth.transport.connect)
            await settle(birth, box, wish.policy, wish.gateway_socket, wish.held, wish.egress)
            box.facts = facts.model_copy(update={"boot_s": round(time.monotonic() - began, 3)})
        except BaseException:
            await birth.undo()
            raise
        birth.held = wish.held
        self._open.add(birth)
        return box

    async def _make_room(self, recipe: Recipe) -> None:
        """Spares of another kind must not keep out a box that is really wanted."""
        await self.pool.drain(recipe.memory_mb + QEMU_OVERHEAD_MB)
        while len(self.pool) and self._settings.warm == "auto":
            try:
                await run_sync(check_room, self._settings.shm, self._promised() + (recipe.memory_mb << 20))
            except NoRoom:
                await self.pool.give_up_one()
            else:
                break

    def _promised(self) -> int:
        """Bytes of the tmpfs that the boxes of this process may still take."""
        return sum(birth.promised_bytes for birth in self._alive)

    async def _close(self, birth: Birth) -> None:
        await birth.undo()
        self._open.discard(birth)

    async def _bear(self, wish: _Wish, timeout_s: float, *, warm: bool) -> tuple[Birth, BoxStart, str]:
        """A new box, how it started, and why it is no clone."""
        note = ""
        deadline = 0.0
        recipe, held = wish.recipe, wish.held
        if warm:
            try:
                resident = await self._resident(recipe)
                deadline = time.monotonic() + timeout_s
                birth = await self._clone(recipe, resident, deadline)
                await self._plugged(birth, held)
                return birth, "clone", ""
            except NotRestored as error:
                log.warning("booting a box instead of cloning it: %s", error.message)
                note = error.message
        deadline = deadline or time.monotonic() + timeout_s
        return await self._born(recipe, lambda new: new.cold(deadline, held)), "cold", note

    async def _resident(self, recipe: Recipe) -> Resident:
        try:
            return await self.templates.resident(recipe)
        except ProviderError as error:
            raise NotRestored(error.message, cause=error.cause) from error

    async def _clone(self, recipe: Recipe, resident: Resident, deadline: float) -> Birth:
        """A clone of the recipe's template.

        Raises:
            NotRestored: the template is broken, or its memory has no room.
            ProviderError, LimitExceeded: the host's side failed otherwise.
        """
        try:
            birth = await self._born(recipe, lambda new: new.clone(resident, deadline, self._promised))
        except BrokenTemplate as error:
            await self.templates.discard(resident, error.message)
            raise
        self.templates.worked(resident)
        return birth

    async def _spare(self, recipe: Recipe) -> Birth:
        birth = await self._clone(recipe, await self._resident(recipe), time.monotonic() + BOOT_S)
        try:
            await rehearse(birth.connection, await run_sync(images.rehearsals, recipe.image))
        except BaseException:
            await birth.undo()
            raise
        return birth

    async def _born(self, recipe: Recipe, up: Callable[[Birth], Awaitable[None]]) -> Birth:
        assert self._tasks is not None
        birth = Birth(self._settings, self.hypervisor, recipe, self._alive.discard)
        self._alive.add(birth)
        try:
            await up(birth)
            birth.live(self._tasks)
        except BaseException:
            await birth.undo()
            raise
        return birth


@dataclass(frozen=True)
class _Wish:
    """The box that somebody asked for."""

    recipe: Recipe
    gateway_socket: Path | None
    policy: Policy
    held: Held | None
    egress: OpenEgress | None


def _append(path: Path, line: str) -> None:
    """Blocking. One write, so that lines of several processes do not mix."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode() + b"\n")
    finally:
        os.close(fd)
