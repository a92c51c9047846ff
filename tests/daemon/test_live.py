"""The live backend when libvirt goes away, and when a stage ends; with doubles for libvirt and the boxes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest

from tests.gateway.upstream_server import KEY, bench
from voidbox_lab.daemon import live
from voidbox_lab.engine import StageJob
from voidbox_lab.errors import ProviderError
from voidbox_lab.gateway import app
from voidbox_lab.spec import Model, Policy, Rootfs, Stage, VoidBoxSpec

pytestmark = pytest.mark.anyio
BOX: dict[str, Any] = {
    "memory_mb": 512, "vcpus": 1, "rootfs": Rootfs(), "gateway_socket": None, "policy": Policy(),
}  # fmt: skip


class FakeHypervisor:
    made: list[FakeHypervisor]

    def __init__(self) -> None:
        self.lost = self.closed = False

    @classmethod
    async def open(cls, settings: Any) -> FakeHypervisor:
        cls.made.append(cls())
        return cls.made[-1]

    async def aclose(self) -> None:
        self.closed = True


class FakeBoxes:
    def __init__(self, settings: Any, hypervisor: FakeHypervisor) -> None:
        self.hypervisor, self.running = hypervisor, 0

    async def __aenter__(self) -> FakeBoxes:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def open(self, **_: Any) -> FakeBoxes:
        if self.hypervisor.lost:
            raise ProviderError("Lost.", cause="libvirt-lost")
        self.running += 1
        return self


async def test_a_lost_connection_is_retired_and_the_box_opened_over_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeHypervisor.made = made = []
    monkeypatch.setattr(live, "Hypervisor", FakeHypervisor)
    monkeypatch.setattr(live, "Boxes", FakeBoxes)
    monkeypatch.setattr(live, "RETIRED_S", 0.01)
    async with anyio.create_task_group() as tasks:
        nothing: Any = None
        backend = live.LiveBackend(nothing, nothing, tasks)
        first: Any = await backend.open(**BOX)
        made[0].lost = True
        second: Any = await backend.open(**BOX)
        assert second is not first
        await anyio.sleep(0.1)
        assert [h.closed for h in made] == [False, False], "a box still runs over the lost one"
        first.running = 0
        await anyio.sleep(0.1)
        assert [h.closed for h in made] == [True, False]
        backend.close()
    assert [h.closed for h in made] == [True, True]


async def test_a_stage_is_over_only_when_its_model_calls_are_metered(tmp_path: Path) -> None:
    """The end of the stage, and of the run, is recorded next; no event may follow it."""
    async with bench() as lab, anyio.create_task_group() as tasks:
        asked = anyio.Event()
        answers: list[httpx.Response] = []

        async def hang(_seen: Any, reply: Any) -> None:
            await reply.start()
            await reply.chunk(b": working\n\n")
            asked.set()
            await reply.hung_up()

        lab.provider.handler = hang
        settings: Any = SimpleNamespace(runtime=tmp_path)
        backend = live.LiveBackend(settings, lab.gateway, tasks)
        backend.add_keys({"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": lab.provider.url})
        model = Model.parse("anthropic:m")
        job = StageJob("run-1", Stage(box=VoidBoxSpec(name="one", prompt="p", model=model)), {}, {})

        async def ask(token: str) -> None:
            async with lab.client(token) as client:
                request = {"model": "m", "max_tokens": 9, "stream": True, "messages": []}
                answers.append(await client.post("/v1/messages", json=request))

        async with backend.session(job) as session:
            tasks.start_soon(ask, session.token)
            with anyio.fail_after(10):
                await asked.wait()
        assert [(s.run, s.stage) for s, _ in lab.calls] == [("run-1", "one")]
        with anyio.fail_after(10):
            while not answers:
                await anyio.sleep(0.01)
        assert "stage has ended" in answers[0].text
        backend.close()


async def test_a_model_call_that_does_not_end_is_metered_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and the stage's end does not wait for it for ever."""

    class Stuck:
        cancelled = reported = 0

        def cancel(self) -> None:
            self.cancelled += 1

        def report(self) -> None:
            self.reported += 1

    monkeypatch.setattr(app, "METER_S", 0.05)
    async with bench() as lab:
        token, stuck = lab.register("anthropic:m"), Stuck()
        session = lab.gateway._sessions.find(token)
        assert session is not None
        session.in_flight.add(stuck)
        with anyio.fail_after(5):
            await lab.gateway.close(token)
        assert (stuck.cancelled, stuck.reported) == (1, 1)
        await lab.gateway.close(token)
        assert stuck.reported == 1
