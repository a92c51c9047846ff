"""Admission: first come, first served, never beyond the capacity, and never for ever."""

from __future__ import annotations

import anyio
import pytest

from voidbox_lab.engine import Admission, Capacity
from voidbox_lab.engine.admission import BOX_OVERHEAD_MB
from voidbox_lab.errors import UserError

pytestmark = pytest.mark.anyio


async def test_in_turn_and_within_capacity() -> None:
    admission = Admission(Capacity(memory_mb=1000 + 2 * BOX_OVERHEAD_MB, vcpus=8))
    order: list[str] = []
    most = 0

    async def box(name: str, memory_mb: int) -> None:
        nonlocal most
        async with admission.admitted(memory_mb, 1):
            order.append(name)
            most = max(most, admission.used_mb)
            await anyio.sleep(0.02)

    async with anyio.create_task_group() as tasks:
        for name, memory_mb in (("a", 500), ("b", 900), ("c", 100), ("d", 100)):
            tasks.start_soon(box, name, memory_mb)
            await anyio.sleep(0)
    assert order == ["a", "b", "c", "d"], "a small one overtook a large one"
    assert most <= admission.capacity.memory_mb
    assert (admission.used_mb, admission.used_vcpus, admission.boxes) == (0, 0, 0)


async def test_who_gives_up_makes_room() -> None:
    admission = Admission(Capacity(memory_mb=600, vcpus=8))
    reached = anyio.Event()

    async def second() -> None:
        async with admission.admitted(400, 1):
            reached.set()

    async with admission.admitted(400, 1):
        with anyio.move_on_after(0.02):
            async with admission.admitted(400, 1):
                raise AssertionError("there was no room")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second)
            await anyio.sleep(0.02)
            assert not reached.is_set()
            tasks.cancel_scope.cancel()
    async with admission.admitted(400, 1):
        assert admission.boxes == 1


async def test_a_lone_box_goes_whatever_it_wants() -> None:
    """vCPUs beyond the host's share are slow, not impossible; memory beyond it is refused before."""
    admission = Admission(Capacity(memory_mb=1000, vcpus=2))
    with anyio.fail_after(1):
        async with admission.admitted(900, 16):
            pass
    with pytest.raises(UserError, match="at most 904 MiB"):
        admission.check("Stage 'x'", 905)


def test_this_host_has_room() -> None:
    capacity = Capacity.of_host()
    assert capacity.memory_mb > 0
    assert capacity.vcpus >= 4
