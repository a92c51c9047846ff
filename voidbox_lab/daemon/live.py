"""The real backend: libvirt's boxes, the agents' adapters, the gateway, put together.

libvirt is opened when the first box (or sweep) asks for it: a daemon on a machine without QEMU still
shows old runs, and says at the first new one what is missing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus
from starlette.types import ASGIApp

from voidbox_lab import agents
from voidbox_lab.box import Box, Boxes
from voidbox_lab.box.composing import composed
from voidbox_lab.box.egress import Close, OpenEgress
from voidbox_lab.engine import StageJob
from voidbox_lab.errors import ProviderError, UserError, VoidboxError
from voidbox_lab.gateway import Gateway, Keys, StageSession, cost_usd
from voidbox_lab.gateway.egress import EgressProxy, Record
from voidbox_lab.machines import Hypervisor
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Policy, Rootfs, Tokens, VoidBoxSpec, digest_json
from voidbox_lab.spec.events import Body, ModelCall
from voidbox_lab.spec.volume import Mount
from voidbox_lab.wire.protocol import PROXY_PORT

RETIRED_S = 1.0
"""How often a lost connection is asked whether its last box is closed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GatewaySession:
    """A stage's way to its model; see `voidbox_lab.engine.stage.Session`."""

    gateway: Gateway
    token: str = field(repr=False)
    socket: Path
    base_url: str = f"http://127.0.0.1:{PROXY_PORT}"

    def trouble(self) -> VoidboxError | None:
        """Why the latest model request failed on the host's side, if it did."""
        return self.gateway.trouble(self.token)

    async def close(self) -> None:
        """End its requests, upstream first, and let no more in."""
        await self.gateway.close(self.token)


@dataclass
class _Opened:
    """libvirt and the boxes over it, held by a task of their own."""

    hypervisor: Hypervisor
    boxes: Boxes
    close: anyio.Event = field(default_factory=anyio.Event)


class LiveBackend:
    """A `Backend` over libvirt. Made by `live_backend`."""

    def __init__(self, settings: Settings, gateway: Gateway, tasks: TaskGroup) -> None:
        self._settings, self._gateway, self._tasks = settings, gateway, tasks
        self._keys: dict[str, str] = {}
        self._opened: _Opened | None = None
        self._retired: list[_Opened] = []
        self._opening = anyio.Lock()

    @property
    def gateway_app(self) -> ASGIApp:
        """See `Backend`."""
        return self._gateway

    @property
    def key_names(self) -> Sequence[str]:
        """See `Backend`."""
        return Keys(self._keys).names

    def add_keys(self, keys: Mapping[str, str]) -> None:
        """See `Backend`."""
        self._keys |= keys

    def check(self, box: VoidBoxSpec, *, priced: bool = False) -> None:
        """See `Backend`."""
        adapter = agents.adapter(box.adapter)
        if box.model is not None:
            self._gateway.check(box.model, Keys(self._keys), adapter.api)
            if priced and cost_usd(box.model, Tokens(input=1)) is None:
                raise UserError(
                    f"A budget in dollars bounds stage {box.name!r}, and {box.model} has no known price; "
                    "bound its tokens instead.",
                    cause="unpriced",
                )

    async def identity(self, box: VoidBoxSpec) -> str:
        """See `Backend`."""
        layer = agents.adapter(box.adapter).layer
        image = await composed(self._settings, box.rootfs(layer))
        script = self._gateway.script_digest(box.model) if box.model is not None else None
        return digest_json([image.digest, layer, script])

    def adapter(self, name: str) -> agents.Adapter:
        """See `Backend`."""
        return agents.adapter(name)

    @asynccontextmanager
    async def session(self, job: StageJob) -> AsyncIterator[GatewaySession]:
        """See `Backend`."""
        assert job.box.model is not None, "a stage without a model has no session"
        stage = StageSession(job.run, job.box.name, job.box.model, Keys(self._keys), job.metered)
        token = self._gateway.register(stage)
        try:
            yield GatewaySession(self._gateway, token, self._settings.runtime / "gateway.sock")
        finally:
            # Before the stage's end is recorded: the last events of a run are its stages' ends and its own.
            await self._gateway.close(token)

    async def open(
        self,
        *,
        memory_mb: int,
        vcpus: int,
        rootfs: Rootfs,
        gateway_socket: Path | None,
        policy: Policy,
        volumes: Sequence[Mount] = (),
        egress: Record | None = None,
    ) -> Box:
        """See `Backend`."""
        for last in (False, True):
            opened = await self._open()
            try:
                return await opened.boxes.open(
                    memory_mb=memory_mb,
                    vcpus=vcpus,
                    rootfs=rootfs,
                    gateway_socket=gateway_socket,
                    policy=policy,
                    volumes=volumes,
                    egress=self._way_out(policy, egress or _logged),
                )
            except ProviderError as e:
                if e.cause != "libvirt-lost":
                    raise
                self._retire(opened)
                if last:
                    raise
        raise AssertionError("unreachable")

    def _way_out(self, policy: Policy, record: Record) -> OpenEgress | None:
        if policy.network == "none":
            return None

        async def serve(path: Path) -> Close:
            proxy = EgressProxy(policy, record)
            await self._tasks.start(proxy.serve, path)
            return proxy.aclose

        return serve

    async def boxes(self) -> Boxes:
        """See `Backend`."""
        return (await self._open()).boxes

    async def hypervisor(self) -> Hypervisor:
        """The libvirt connection; opened if need be."""
        return (await self._open()).hypervisor

    @property
    def spares(self) -> int:
        """See `Backend`."""
        return len(self._opened.boxes.pool) if self._opened is not None else 0

    @property
    def spare_mb(self) -> int:
        """See `Backend`."""
        return self._opened.boxes.pool.memory_mb if self._opened is not None else 0

    async def sweep(self) -> list[str]:
        """See `Backend`."""
        return list(await (await self._open()).hypervisor.sweep())

    def close(self) -> None:
        """Begin to close; leaving the context of `live_backend` waits for it."""
        if self._opened is not None:
            self._drop(self._opened)
        for opened in self._retired:
            opened.close.set()

    async def _open(self) -> _Opened:
        async with self._opening:
            if self._opened is None:
                self._opened = await self._tasks.start(self._hold)
            return self._opened

    def _drop(self, opened: _Opened) -> None:
        opened.close.set()
        if self._opened is opened:
            self._opened = None

    def _retire(self, opened: _Opened) -> None:
        """No new boxes over `opened`; those that run over it finish as they can, and then it is closed."""
        if self._opened is opened:
            self._opened = None
            self._retired.append(opened)
            self._tasks.start_soon(self._close_when_empty, opened)

    async def _close_when_empty(self, opened: _Opened) -> None:
        while opened.boxes.running and not opened.close.is_set():
            with anyio.move_on_after(RETIRED_S):
                await opened.close.wait()
        opened.close.set()
        self._retired.remove(opened)

    async def _hold(self, *, task_status: TaskStatus[_Opened]) -> None:
        """Hold the connection and the boxes' task group, which one task must enter and leave."""
        hypervisor = await Hypervisor.open(self._settings)
        opened: _Opened | None = None
        try:
            async with Boxes(self._settings, hypervisor) as boxes:
                opened = _Opened(hypervisor, boxes)
                task_status.started(opened)
                await opened.close.wait()
        except Exception:
            if opened is None:
                raise
            log.exception("the boxes' keeper failed; the next box starts a new one")
            self._drop(opened)
        finally:
            with anyio.CancelScope(shield=True):
                await hypervisor.aclose()


async def _logged(body: Body) -> None:
    """For boxes that are of no run."""
    log.info("a connection of a box: %s", body.model_dump_json(exclude_defaults=True))


@asynccontextmanager
async def live_backend(settings: Settings) -> AsyncIterator[LiveBackend]:
    """The backend for the time of the context; leaving it closes every box."""

    def metered(session: StageSession, call: ModelCall) -> None:
        session.metered(call)

    async with Gateway(metered) as gateway, anyio.create_task_group() as tasks:
        backend = LiveBackend(settings, gateway, tasks)
        try:
            yield backend
        finally:
            backend.close()
