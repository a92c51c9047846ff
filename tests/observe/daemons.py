"""A daemon over doubles that exports what it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio

from tests.daemon.doubles import FakeBackend, fake_backend
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.engine import Capacity
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Model, RunRecord, RunSpec, Tokens
from voidbox_lab.spec.events import ModelCall

MODEL = Model.parse("openai:gpt-x@http://127.0.0.1:9/v1")


@asynccontextmanager
async def daemon(settings: Settings, url: str | None) -> AsyncIterator[Daemon]:
    """A daemon over doubles that exports to `url`."""
    capacity = Capacity(memory_mb=4096, vcpus=8)
    async with Daemon.open(replace(settings, otlp=url), fake_backend, capacity=capacity) as it:
        yield it
        it.stop()
        with anyio.fail_after(20):
            await it.wind_down()


async def ran(it: Daemon, spec: RunSpec) -> RunRecord:
    record = await it.submit(spec)
    assert await it.runner.finished(record.id, 20)
    return await it.store.get_run(record.id)


def backend(it: Daemon) -> FakeBackend:
    assert isinstance(it.backend, FakeBackend)
    return it.backend


async def meter(it: Daemon, stage: str) -> None:
    """As the gateway does, while the stage's agent is at work."""
    sessions = backend(it).sessions
    with anyio.fail_after(10):
        while not any(used.name == stage for used, *_ in backend(it).execs):
            await anyio.sleep(0.01)
    await anyio.sleep(0.1)
    tokens = Tokens(input=10, output=5)
    call = ModelCall(
        request="req-1", model="gpt-x", source="live", status=200, tokens=tokens, cost_usd=0.01, duration_s=0.5
    )
    sessions.jobs[stage].metered(call)
