"""A backend without VMs: the engine's doubles, behind the daemon's contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from tests.engine.doubles import FakeBoxes, FakeExit, FakeSessions, adapter, says
from voidbox_lab.errors import Unavailable, UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import VoidBoxSpec


class FakeBackend(FakeBoxes):
    """Scripts by stage name; ``/bin/echo``-like execs by their last argument."""

    def __init__(self, tasks: Any) -> None:
        super().__init__(self.play, tasks)
        self.sessions = FakeSessions()
        self.session = self.sessions
        self.adapter = adapter
        self.keys: dict[str, str] = {}
        self.scripts: dict[str, Sequence[tuple[str, Any]]] = {}
        self.swept = 0

    def play(self, name: str) -> Sequence[tuple[str, Any]]:
        if name.startswith("slow"):
            return [*says("begun"), ("sleep", 60)]
        if name.startswith("exit-"):
            return [("out", b"to stdout\xff"), ("err", b"to stderr"), ("exit", FakeExit(code=int(name[5:])))]
        return self.scripts.get(name, says("working", result=f"{name} done"))

    async def gateway_app(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no token"})

    @property
    def key_names(self) -> Sequence[str]:
        return sorted(self.keys)

    def add_keys(self, keys: Mapping[str, str]) -> None:
        self.keys |= keys

    def check(self, box: VoidBoxSpec, *, priced: bool = False) -> None:
        adapter(box.agent)
        if box.model and box.model.provider == "anthropic" and "ANTHROPIC_API_KEY" not in self.keys:
            raise UserError("No ANTHROPIC_API_KEY is set.", cause="no-key")

    async def identity(self, box: VoidBoxSpec) -> str:
        return "sha256:fake"

    spares = 0

    @property
    def spare_mb(self) -> int:
        return 0

    async def sweep(self) -> list[str]:
        self.swept += 1
        return ["vb-0000000000"]

    async def boxes(self) -> Any:
        raise Unavailable("There is no QEMU on this machine; install qemu-system-x86.")

    async def hypervisor(self) -> Any:
        raise Unavailable("There is no libvirt on this machine; install libvirt-daemon-driver-qemu.")


@asynccontextmanager
async def fake_backend(settings: Settings) -> AsyncIterator[FakeBackend]:
    async with anyio.create_task_group() as tasks:
        backend = FakeBackend(tasks)
        yield backend
        tasks.cancel_scope.cancel()
    assert backend.opened == backend.closed, "a box was left open"
