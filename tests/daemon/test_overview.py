"""All runs at a glance: what is in it, what it costs, and that watching is not using."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from tests.daemon.test_api import spec
from tests.engine.doubles import SAMPLE
from voidbox_lab.daemon import overview
from voidbox_lab.daemon.gauges import Gauges
from voidbox_lab.errors import ProviderError
from voidbox_lab.spec import BoxFacts
from voidbox_lab.spec.events import BoxBooted, RunChanged, StageChanged
from voidbox_lab.spec.overview import MAX_SAMPLES, Overview

pytestmark = pytest.mark.anyio
FACTS = BoxFacts(isolation="tcg", vsock="user", domain="d", image="i", memory_mb=1, vcpus=1, boot_s=0)


async def seen(house: Any, **params: Any) -> Overview:
    """The overview as a client gets it."""
    response = await house.client._open.get("/v1/overview", params=params)
    assert response.status_code == 200, response.text
    return Overview.model_validate_json(response.content)


async def until(house: Any, true: Any, **params: Any) -> Overview:
    with anyio.fail_after(10):
        while not true(now := await seen(house, **params)):
            await anyio.sleep(0.05)
    return now


async def test_a_run_in_progress_with_its_box_and_its_curve(house: Any) -> None:
    record = await house.client.submit(spec("slow"))
    now = await until(house, lambda o: o.boxes and o.boxes[0].cpu)
    (run,) = now.runs
    assert (run.id, run.state, run.stages, run.at_work) == (record.id, "running", {"running": 1}, ("slow",))
    assert run.isolation == ("tcg",)
    (box,) = now.boxes
    assert (box.run, box.stage, box.facts.isolation) == (record.id, "slow", "tcg")
    assert box.cpu[0] == SAMPLE.cpu
    assert box.memory[0] == pytest.approx(SAMPLE.memory_used_kb / SAMPLE.memory_total_kb, abs=0.001)
    assert now.health.runs == 1
    assert now.room.memory_used_mb >= box.facts.memory_mb
    assert now.room.vcpus_used == 1

    await house.client.cancel(record.id)
    now = await until(house, lambda o: o.runs[0].state == "cancelled")
    assert not now.boxes
    assert now.runs[0].trouble
    assert now.room.memory_used_mb == 0


async def test_those_in_progress_come_first_and_are_always_there(house: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(overview, "PAGE", 2)
    slow = (await house.client.submit(spec("slow"))).id
    ended = [(await house.client.submit(spec(f"s{i}"))).id for i in range(5)]
    now = await until(house, lambda o: o.health.runs == 1)
    now = await until(house, lambda o: [r.id for r in o.runs] == [slow, *ended[:1:-1]], limit=3)
    assert now.spent.runs == 6
    assert [r.id for r in (await seen(house, limit=0)).runs] == [slow]
    await house.client.cancel(slow)
    await until(house, lambda o: slow not in {r.id for r in o.runs if r.state == "running"}, limit=10)


async def test_runs_that_were_deleted_are_gone(house: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(overview, "RECENT_S", 0)
    monkeypatch.setattr(overview, "FRESH_S", 0)
    record = await house.client.submit(spec("s"))
    await until(house, lambda o: o.runs and o.runs[0].state == "succeeded")
    await house.client.forget(record.id)
    assert not (await seen(house)).runs


async def test_a_run_without_a_name_is_called_by_its_stages(house: Any) -> None:
    await house.client.submit(spec(*"abcde"))
    now = await until(house, lambda o: o.runs and o.runs[0].state == "succeeded")
    assert now.runs[0].title == "a, b, c and 2 more"
    assert now.runs[0].stages == {"succeeded": 5}


async def test_what_was_spent_since(house: Any) -> None:
    await house.client.submit(spec("s"))
    await until(house, lambda o: o.health.runs == 0 and o.runs)
    assert (await seen(house, since=0)).spent.runs == 1
    assert (await seen(house, since=time.time() + 60)).spent.runs == 0
    assert (await seen(house)).spent.runs == 1


async def test_a_record_that_has_ended_is_not_read_each_time(house: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(overview, "FRESH_S", 0)
    await house.client.submit(spec("s"))
    await until(house, lambda o: o.health.runs == 0 and o.runs)
    await seen(house)

    async def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("the store was asked")

    monkeypatch.setattr(house.daemon.store, "list_runs", fail)
    monkeypatch.setattr(house.daemon.store, "get_run", fail)
    assert len((await seen(house)).runs) == 1


async def test_watching_does_not_keep_the_daemon(house: Any) -> None:
    await anyio.sleep(0.2)
    await seen(house)
    assert house.daemon.activity.idle_s >= 0.2
    await house.client.health()
    assert house.daemon.activity.idle_s < 0.2


def test_curves_are_bounded_and_end_with_their_box() -> None:
    gauges = Gauges()
    for stage in ("s", "other"):
        gauges.take("r", stage, BoxBooted(facts=FACTS))
    for _ in range(2 * MAX_SAMPLES):
        gauges.take("r", "s", SAMPLE)
    gauges.take("r", "s", SAMPLE.model_copy(update={"cpu": float("nan"), "memory_used_kb": 1 << 60}))
    gauges.take("r", "other", SAMPLE)
    curves = gauges.of("r", "s")
    assert len(curves.cpu) == len(curves.memory) == MAX_SAMPLES
    assert (curves.cpu[-1], curves.memory[-1]) == (0.0, 1.0), "a guest says what it likes"
    gauges.take("r", "s", StageChanged(state="retrying"))
    assert not gauges.of("r", "s").cpu
    assert gauges.of("r", "other").cpu
    gauges.take("r", None, RunChanged(state="failed"))
    assert not gauges.of("r", "other").cpu
    gauges.take("r", "other", SAMPLE)
    assert not gauges._runs, "a sample that comes late keeps nothing alive"


async def test_a_store_that_fails_half_way_leaves_no_half(house: Any, monkeypatch: Any) -> None:
    """What could not be listed is listed at the next look, not only when all are listed again."""
    monkeypatch.setattr(overview, "FRESH_S", 0)
    monkeypatch.setattr(overview, "PAGE", 2)
    for _ in range(5):
        await house.client.submit(spec("s"))
    await until(house, lambda o: o.health.runs == 0 and o.spent.runs == 5)
    real, broken = house.daemon.store.list_runs, True

    async def flaky(**options: Any) -> Any:
        if broken and options.get("before"):
            raise ProviderError("The disk is away.")
        return await real(**options)

    monkeypatch.setattr(house.daemon.store, "list_runs", flaky)
    long_ago = {"since": time.time() - 1_000_000}
    assert (await house.client._open.get("/v1/overview", params=long_ago)).is_error
    broken = False
    assert (await seen(house, **long_ago)).spent.runs == 5
