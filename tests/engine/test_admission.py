"""Admission: first come, first served, never beyond the capacity, and never for ever."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from voidbox_lab.engine import Admission, Capacity, Waiting, admission
from voidbox_lab.engine.admission import BOX_OVERHEAD_MB
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError

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


class Told:
    """What somebody who waits is told."""

    def __init__(self) -> None:
        self.waits: list[Waiting] = []

    async def __call__(self, waiting: Waiting) -> None:
        self.waits.append(waiting)

    @property
    def last(self) -> tuple[str, int]:
        return self.waits[-1].reason, self.waits[-1].ahead


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pace of a wait in hundredths of a second."""
    for name, seconds in (("POLL_S", 0.01), ("TELL_S", 0.01), ("SETTLE_S", 0.4), ("FRESH_S", 0.0)):
        monkeypatch.setattr(admission, name, seconds)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.005)


async def test_who_waits_is_told_why_and_how_far(brisk: None) -> None:
    """At once, and again when something has changed; who need not wait is told nothing."""
    room = Admission(Capacity(memory_mb=1000, vcpus=4))
    one, two, three = Told(), Told(), Told()
    leave = anyio.Event()

    async def box(memory_mb: int, vcpus: int, tell: Told) -> None:
        async with room.admitted(memory_mb, vcpus, tell=tell):
            await leave.wait()

    async with anyio.create_task_group() as tasks:
        for memory_mb, vcpus, tell in ((500, 3, one), (500, 1, two), (100, 2, three)):
            tasks.start_soon(box, memory_mb, vcpus, tell)
            await anyio.sleep(0)
        await until(lambda: bool(three.waits))
        assert not one.waits
        assert two.last == ("memory", 0)
        assert three.last == ("vcpus", 1)
        assert str(two.waits[0]) == "needs 596 MiB, 404 MiB free, 0 in front"
        assert str(three.waits[0]) == "needs 2 vCPUs, 1 vCPUs free, 1 in front"
        leave.set()
    assert len(two.waits) == 1, "nothing had changed"
    assert room.boxes == 0


async def test_a_wait_has_a_bound(brisk: None) -> None:
    room = Admission(Capacity(memory_mb=1000, vcpus=4), wait_s=0.05)
    async with room.admitted(600, 1):
        with pytest.raises(
            LimitExceeded, match=r"Stage 'b' found no room within 0\.05 s \(needs 696 MiB"
        ) as caught:
            async with room.admitted(600, 1, what="Stage 'b'"):
                pytest.fail("there was no room")
        assert (caught.value.limit, caught.value.value, caught.value.cause) == ("time", 0.05, "no-room")
        async with room.admitted(100, 1):
            assert room.boxes == 2, "who gave up stands in the way"


async def test_memory_that_others_have_is_waited_for_while_a_box_of_ours_runs(brisk: None) -> None:
    """It is enough that another program gives it back, of which nobody tells."""
    free, told = 5000, Told()
    room = Admission(Capacity(memory_mb=8000, vcpus=8), free_mb=lambda: free)
    inside: list[bool] = []

    async def second() -> None:
        async with room.admitted(512, 1, tell=told):
            inside.append(True)

    async with room.admitted(512, 1), anyio.create_task_group() as tasks:
        free = 300
        tasks.start_soon(second)
        await until(lambda: bool(told.waits))
        await anyio.sleep(0.2)
        assert not inside
        assert told.last == ("host-memory", 0)
        assert str(told.waits[0]) == "needs 608 MiB, 300 MiB free on the host, 0 in front"
        free = 608
        await until(lambda: bool(inside))


async def test_memory_that_nobody_will_free_is_refused(brisk: None) -> None:
    """At once where nothing of ours runs; else when the last one is gone and its memory had time to come back."""
    free, told = 300, Told()
    room = Admission(Capacity(memory_mb=8000, vcpus=8), free_mb=lambda: free)
    sentence = "Stage 'b' needs 608 MiB of host memory and 300 MiB are free, and no box runs"
    with pytest.raises(ProviderError, match=sentence) as caught:
        async with room.admitted(512, 1, what="Stage 'b'"):
            pytest.fail("there was no room")
    assert caught.value.cause == "host-memory"
    outcome: dict[str, str] = {}

    async def waits(memory_mb: int, what: str) -> None:
        try:
            async with room.admitted(memory_mb, 1, what=what, tell=told):
                outcome[what] = "let in"
        except ProviderError as e:
            outcome[what] = e.message

    async with anyio.create_task_group() as tasks:
        free = 1000
        async with room.admitted(512, 1):
            free = 300
            tasks.start_soon(waits, 512, "Stage 'b'")
            await until(lambda: bool(told.waits))
            tasks.start_soon(waits, 192, "Stage 'small'")
            await anyio.sleep(0.05)
            assert not outcome
        with anyio.move_on_after(0.05):
            await until(lambda: bool(outcome))
            pytest.fail("refused before the memory of the box that ended could come back")
        await until(lambda: len(outcome) == 2)
    assert outcome["Stage 'b'"].startswith(sentence)
    assert outcome["Stage 'small'"] == "let in", "what is refused stands in nobody's way"
    assert room.boxes == 0


async def test_boxes_let_in_together_do_not_count_on_the_same_memory(
    brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that boots has touched little of its memory, so the host still calls it free."""
    monkeypatch.setattr(admission, "FRESH_S", 0.3)
    told = Told()
    room = Admission(Capacity(memory_mb=8000, vcpus=8), free_mb=lambda: 1000)
    async with room.admitted(512, 1):
        began = anyio.current_time()
        async with room.admitted(512, 1, tell=told):
            assert anyio.current_time() - began > 0.2
    assert told.last == ("host-memory", 0)
    assert told.waits[0].free == 1000 - 608


def test_this_host_has_room() -> None:
    capacity = Capacity.of_host()
    assert capacity.memory_mb > 0
    assert capacity.vcpus >= 4
