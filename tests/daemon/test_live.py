"""The live backend when libvirt goes away, with doubles for libvirt and the boxes."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from voidbox_lab.daemon import live
from voidbox_lab.errors import ProviderError
from voidbox_lab.spec import Policy

pytestmark = pytest.mark.anyio
BOX: dict[str, Any] = {
    "memory_mb": 512, "vcpus": 1, "image": "default", "agents": (), "gateway_socket": None, "policy": Policy(),
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
        backend = live.LiveBackend(nothing, nothing, nothing, tasks)
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
