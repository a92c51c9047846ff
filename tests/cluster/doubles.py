"""A worker's backend without VMs: stages play the script of their name, and every box leaves lines in a file."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from tests.daemon.doubles import FakeBackend
from tests.engine.doubles import FakeBox, FakeSession, says
from voidbox_lab.engine import StageJob
from voidbox_lab.errors import UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Tokens, VoidBoxSpec
from voidbox_lab.spec.events import ModelCall

TEXTS = 400
CALL = ModelCall(
    request="r", model="x", source="scripted", status=200, tokens=Tokens(output=10), cost_usd=0.0, duration_s=0.1
)


class WorkerBackend(FakeBackend):
    """``nap-SECONDS-…`` takes so long, ``chat-…`` talks a lot, ``paid-…`` calls its model on and on."""

    def __init__(self, tasks: Any, told: Path) -> None:
        super().__init__(tasks)
        self.log = self.sessions.log
        self.told = told
        self.session = self.metered_session

    def tell(self, **what: Any) -> None:
        with self.told.open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), **what}) + "\n")

    def play(self, name: str) -> Sequence[tuple[str, Any]]:
        kind, *rest = name.split("-")
        if kind == "nap":
            return [*says("begun")[:1], ("sleep", int(rest[0]) / 10), *says(result=f"{name} done")]
        if kind == "chat":
            return says(*(f"{i} " for i in range(TEXTS)), result=f"{name} done")
        if kind == "paid":
            return [*says("begun")[:1], ("sleep", 30)]
        if kind == "long":
            return [("out", "é".encode() * 500_000)] * 6
        return super().play(name)

    def check(self, box: VoidBoxSpec, *, priced: bool = False) -> None:
        if box.name.startswith("keyless"):
            raise UserError("No KEY is set.", cause="no-key")

    async def identity(self, box: VoidBoxSpec) -> str:
        return os.environ.get("VOIDBOX_TEST_IDENTITY", "sha256:image")

    @asynccontextmanager
    async def metered_session(self, job: StageJob) -> AsyncIterator[FakeSession]:
        async def spend() -> None:
            while job.box.name.startswith("paid"):
                await anyio.sleep(0.05)
                job.metered(CALL)

        self.tell(stage=job.box.name, traceparent=job.traceparent)
        async with self.sessions(job) as session, anyio.create_task_group() as tasks:
            tasks.start_soon(spend)
            yield session
            if job.box.name.startswith("paid"):
                job.metered(CALL)  # what was in flight is paid for as well
            tasks.cancel_scope.cancel()

    async def open(self, **options: Any) -> FakeBox:
        box = await super().open(**options)
        self.tell(open=box.id)
        closing = box.close

        async def close() -> None:
            await closing()
            files = {name: len(data) for name, data in box.files.items()}
            self.tell(closed=box.id, log=list(self.log), files=files)

        box.close = close  # type: ignore[method-assign]
        return box


@asynccontextmanager
async def worker_backend(settings: Settings) -> AsyncIterator[WorkerBackend]:
    """Leaving it fails if a box is open."""
    async with anyio.create_task_group() as tasks:
        backend = WorkerBackend(tasks, Path(os.environ["VOIDBOX_TEST_TOLD"]))
        yield backend
        tasks.cancel_scope.cancel()
    assert backend.opened == backend.closed, "a box was left open"
    backend.tell(ended=True)
