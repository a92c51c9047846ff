"""The pool of spares: how many, for how long, and what becomes of the dead. Births are fakes, clocks are set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import anyio
import pytest

from voidbox_lab import images
from voidbox_lab.box import pool
from voidbox_lab.box.pool import FAILED_S, IDLE_S, RECENT_S, Pool
from voidbox_lab.engine import Admission, Capacity
from voidbox_lab.engine.admission import BOX_OVERHEAD_MB
from voidbox_lab.machines import Recipe

from .pool_doubles import COST_MB, SHARE_MB, SIZE_MB, FakeBirth, Host

pytestmark = pytest.mark.anyio


def recipe(memory_mb: int = SIZE_MB) -> Recipe:
    """As good as a real one: a pool only compares it and asks for its memory."""
    return Recipe(cast("images.Image", None), memory_mb, 1, "tcg")


@asynccontextmanager
async def running(kept: Pool) -> AsyncIterator[Pool]:
    """`kept` with its keeper at work; it must leave by itself."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kept.run)
        try:
            yield kept
        finally:
            with anyio.fail_after(10, shield=True):
                await kept.aclose()
    assert len(kept) == 0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's pauses, without what they are for: other people's processors."""
    monkeypatch.setattr(pool, "CALM_S", 0.0)
    monkeypatch.setattr(pool, "HEALTH_S", 0.02)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, bounded."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.002)


async def rounds(count: int = 5) -> None:
    """Let the keeper look around that many times, and more."""
    await anyio.sleep(count * pool.HEALTH_S)


def test_wanted_follows_demand() -> None:
    """As many as were asked for lately, at least one while anybody asks, at most the limit, none when idle."""
    host = Host()
    kept = host.pool(3)
    assert kept.wanted(recipe()) == 0
    kept.asked(recipe())
    assert kept.wanted(recipe()) == 1
    assert kept.wanted(recipe(256)) == 0
    kept.asked(recipe())
    assert kept.wanted(recipe()) == 2
    for _ in range(10):
        kept.asked(recipe())
    assert kept.wanted(recipe()) == 3
    host.now += RECENT_S + 1
    assert kept.wanted(recipe()) == 1
    kept.asked(recipe())
    assert kept.wanted(recipe()) == 1
    host.now += IDLE_S + 1
    assert kept.wanted(recipe()) == 0


def test_no_limit_no_spares() -> None:
    """0 turns the pool off, whatever is asked for."""
    kept = Host().pool(0)
    for _ in range(5):
        kept.asked(recipe())
    assert kept.wanted(recipe()) == 0
    assert kept.claim(recipe()) is None


async def test_nothing_is_made_unasked() -> None:
    """A pool that nobody used costs nothing."""
    host = Host()
    async with running(host.pool(4)):
        await rounds()
        assert host.made == []


async def test_spares_are_made_and_claimed_once() -> None:
    """One for each asked; a claim is the caller's alone, and the pool never touches it again."""
    host = Host()
    async with running(host.pool(4)) as kept:
        kept.asked(recipe())
        kept.asked(recipe())
        await until(lambda: len(kept) == 2)
        assert kept.claim(recipe(256)) is None
        mine = [kept.claim(recipe()), kept.claim(recipe())]
        assert kept.claim(recipe()) is None
        assert len({id(birth) for birth in mine}) == 2
        await until(lambda: len(kept) == 2)
    assert cast("list[FakeBirth]", mine) == host.up
    assert [birth.undone for birth in host.made] == [0, 0, 1, 1]


async def test_never_beyond_the_limit() -> None:
    """The limit is for all recipes together; the one asked for last comes first."""
    host = Host()
    async with running(host.pool(2)) as kept:
        for size in (128, 256, 384):
            host.now += 1
            kept.asked(recipe(size))
        await until(lambda: len(kept) == 2)
        await rounds()
        assert len(kept) == host.most == 2
        assert [kept.claim(recipe(size)) is None for size in (128, 256, 384)] == [True, False, False]


async def test_a_share_of_the_memory_stays_free() -> None:
    """However many are wanted, only what fits above the share is made."""
    host = Host(room_for=2)
    async with running(host.pool(8)) as kept:
        for _ in range(8):
            kept.asked(recipe())
        await until(lambda: len(kept) == 2)
        await rounds()
        assert (len(kept), host.most) == (2, 2)
        assert host.memory()[0] >= SHARE_MB


async def test_short_memory_drains() -> None:
    """Half the share left: spares go, the oldest first, until the share is free again."""
    host = Host(room_for=4)
    async with running(host.pool(4)) as kept:
        for _ in range(4):
            kept.asked(recipe())
        await until(lambda: len(kept) == 4)
        host.room_mb -= SHARE_MB // 2 + COST_MB
        await until(lambda: len(kept) < 4)
        await until(lambda: host.memory()[0] >= SHARE_MB or len(kept) == 0)
        gone = [birth.undone for birth in host.made]
        assert gone == sorted(gone, reverse=True), "a younger one went first"


async def test_drain_on_request() -> None:
    """Only as many as are needed; without a number, all."""
    host = Host(room_for=10)
    async with running(host.pool(4)) as kept:
        for _ in range(4):
            kept.asked(recipe())
        await until(lambda: len(kept) == 4)
        host.now += 2 * RECENT_S  # so that none is made again
        kept.limit = 0
        assert await kept.drain(host.memory()[0] + 1) == 1
        assert host.made[0].undone == 1
        assert await kept.drain() == 3
        assert await kept.drain() == 0


async def test_idle_spares_go() -> None:
    """After a while without a request, all of them, and none is made again until somebody asks."""
    host = Host()
    async with running(host.pool(3)) as kept:
        for _ in range(3):
            kept.asked(recipe())
        await until(lambda: len(kept) == 3)
        host.now += RECENT_S + 1
        await until(lambda: len(kept) == 1)
        host.now += IDLE_S
        await until(lambda: len(kept) == 0)
        await until(lambda: host.up == [])
        await rounds()
        assert len(host.made) == 3
        kept.asked(recipe())
        await until(lambda: len(kept) == 1)


async def test_the_dead_are_not_claimed() -> None:
    """A spare that died is passed over, taken down by the keeper, and replaced."""
    host = Host()
    async with running(host.pool(2)) as kept:
        kept.asked(recipe())
        kept.asked(recipe())
        await until(lambda: len(kept) == 2)
        first, second = host.made
        first.alive = False
        assert cast("FakeBirth", kept.claim(recipe())) is second
        kept.asked(recipe())
        await until(lambda: first.undone == 1)
        await until(lambda: len(kept) == 2)
    assert second.undone == 0
    assert host.up == [second]


async def test_all_dead_is_none() -> None:
    """And closing takes down what was passed over, without a keeper even."""
    host = Host()
    kept = host.pool(2)
    async with running(kept):
        kept.asked(recipe())
        await until(lambda: len(kept) == 1)
        host.made[0].alive = False
        assert kept.claim(recipe()) is None
    assert host.up == []
    await kept.aclose()


async def test_the_silent_are_found() -> None:
    """A spare that answers no ping is replaced before anybody gets it."""
    host = Host()
    async with running(host.pool(1)) as kept:
        kept.asked(recipe())
        await until(lambda: len(kept) == 1)
        host.made[0].answers = False
        await until(lambda: host.made[0].undone == 1)
        await until(lambda: len(kept) == 1)
        assert cast("FakeBirth", kept.claim(recipe())) is host.made[1]


async def test_claims_while_it_is_looked_at() -> None:
    """A look takes time, and the pool is used meanwhile: by other recipes, and to the last spare."""
    host = Host()
    async with running(host.pool(2)) as kept:
        kept.asked(recipe())
        kept.asked(recipe())
        await until(lambda: len(kept) == 2)
        first = host.made[0]
        first.hold = anyio.Event()
        first.asked = anyio.Event()
        await first.asked.wait()
        assert kept.claim(recipe(256)) is None
        host.now += 1
        kept.asked(recipe(256))
        mine = [kept.claim(recipe()), kept.claim(recipe())]
        first.answers = False
        first.hold.set()
        await until(lambda: kept.claim(recipe(256)) is not None)
    kept_by_us = [cast("FakeBirth", birth) for birth in mine if birth is not None]
    assert len(kept_by_us) == 2
    assert [birth.undone for birth in kept_by_us] == [0, 0], "a claimed box was taken down"


@pytest.mark.parametrize("when", ["looking", "making", "made"])
async def test_cancelled_while_at_work(when: str) -> None:
    """Whatever the keeper is at, closing afterwards takes everything down."""
    host = Host()
    kept = host.pool(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kept.run)
        kept.asked(recipe())
        if when == "looking":
            kept.asked(recipe())
            await until(lambda: len(kept) == 2)
            first = host.made[0]
            first.hold, first.asked = anyio.Event(), anyio.Event()
            await first.asked.wait()
        elif when == "making":
            await until(lambda: len(kept) == 1)
            host.before_make = anyio.sleep_forever
            kept.asked(recipe())
            await until(lambda: host.tries == 2)
        else:

            async def last_moment() -> None:
                tasks.cancel_scope.cancel()

            host.before_make = last_moment
            await anyio.sleep(1)
        tasks.cancel_scope.cancel()
    await kept.aclose()
    assert host.made
    assert host.up == []


async def test_a_failure_is_not_repeated_at_once() -> None:
    """A pause, then another try; the keeper itself never fails."""
    host = Host()
    host.failing = True
    async with running(host.pool(4)) as kept:
        kept.asked(recipe())
        await until(lambda: host.tries == 1)
        for _ in range(3):
            kept.asked(recipe())
            await rounds(2)
        assert host.tries == 1
        host.failing = False
        host.now += FAILED_S + 1
        kept.asked(recipe())
        await until(lambda: len(kept) >= 1)


async def test_a_host_that_does_not_tell_its_memory() -> None:
    """Out of descriptors, say: the keeper goes on, since its failure would end every box of the process."""
    host = Host()
    looks = 0

    def memory() -> tuple[int, int]:
        nonlocal looks
        looks += 1
        if looks <= 2:
            raise OSError(24, "Too many open files")
        return host.memory()

    async with running(Pool(host.make, 1, memory=memory, clock=lambda: host.now)) as kept:
        kept.asked(recipe())
        await until(lambda: looks > 2)
        host.now += FAILED_S + 1
        kept.asked(recipe())
        await until(lambda: len(kept) == 1)


async def test_nothing_is_made_while_stages_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start within the last moment puts the spare off."""
    monkeypatch.setattr(pool, "CALM_S", 0.2)
    host = Host()
    async with running(host.pool(1)) as kept:
        kept.asked(recipe())
        await anyio.sleep(0.3)  # the host's clock stands still: the start is for ever now
        assert host.tries == 0
        host.now += 0.3
        await until(lambda: len(kept) == 1)


@pytest.mark.parametrize("stubborn", [False, True], ids=["cancellable", "not cancellable"])
async def test_closed_while_one_is_made(stubborn: bool) -> None:
    """Given up where it can be, else awaited and taken down; none is made afterwards."""
    host = Host()
    go = anyio.Event()

    async def wait() -> None:
        with anyio.CancelScope(shield=stubborn):
            await go.wait()

    host.before_make = wait
    kept = host.pool(3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kept.run)
        kept.asked(recipe())
        await until(lambda: host.tries == 1)
        tasks.start_soon(kept.aclose)
        await anyio.sleep(0.05)
        go.set()
    kept.asked(recipe())
    await rounds()
    assert len(host.made) == stubborn
    assert (host.up, len(kept), host.tries) == ([], 0, 1)


async def test_fifty_claims_with_memory_for_ten() -> None:
    """Never more than fit: who finds no spare gets None, and waits for admission like everybody."""
    host = Host(room_for=10)
    admission = Admission(Capacity(memory_mb=10 * (SIZE_MB + BOX_OVERHEAD_MB), vcpus=100))
    starts = {"spare": 0, "made": 0}
    async with running(host.pool(20)) as kept:

        async def stage() -> None:
            async with admission.admitted(SIZE_MB, 1):
                kept.asked(recipe())
                birth = kept.claim(recipe())
                starts["made" if birth is None else "spare"] += 1
                if birth is None:
                    # Spares give way to what is really wanted.
                    await kept.drain(SHARE_MB + COST_MB)
                    birth = await host.make(recipe())
                await anyio.sleep(0.005)
                await birth.undo()

        for _ in range(20):
            kept.asked(recipe())
        await until(lambda: len(kept) == 10)
        assert [kept.claim(recipe()) is None for _ in range(50)].count(False) == 10
        for birth in tuple(host.up):
            await birth.undo()
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(stage)
        assert sum(starts.values()) == 50
        assert host.most <= 10
    assert host.up == []
