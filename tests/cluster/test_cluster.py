"""Stages on two real worker processes behind a real scheduler; the boxes are doubles."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.cluster.doubles import TEXTS
from tests.cluster.farm import Farm, House, open_farm, open_house
from tests.engine.lab import box
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.spec import Budget, RunSpec, Stage
from voidbox_lab.spec.events import AgentText, BoxBooted, ModelCall, Notice
from voidbox_lab.spec.tracing import traceparent
from voidbox_lab.spec.volume import Mount

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A large worker and a small one."""
    with open_farm(tmp_path_factory.mktemp("farm")) as farm:
        farm.start_worker(8192, 8)
        farm.start_worker(2048, 4)
        yield farm


@pytest.fixture
async def house(farm: Farm, tmp_path: Path) -> AsyncIterator[House]:
    """A runner over both; at its end no box is open."""
    async with open_house(tmp_path / "house", farm.address) as house:
        await house.workers(2)
        yield house
    with anyio.fail_after(10):
        while farm.open():
            await anyio.sleep(0.05)


def parallel(*names: str, **options: Any) -> RunSpec:
    """Stages side by side."""
    return RunSpec(stages=tuple(Stage(box=box(n, **options)) for n in names), fresh=True)


async def test_a_pipeline_with_inputs(house: House, farm: Farm) -> None:
    """Inputs of several pieces and earlier answers arrive whole; results say where they ran."""
    data = bytes(range(256)) * 40_000
    file = await house.artifacts.put(data)
    empty = await house.artifacts.put(b"")
    spec = RunSpec(
        stages=(
            Stage(box=box("a"), inputs={"big.bin": file, "empty": empty}),
            Stage(box=box("b"), needs=("a",)),
            Stage(box=box("c"), needs=("a",)),
            Stage(box=box("d"), needs=("b", "c")),
        )
    )
    record = await house.run(spec)
    assert record.state == "succeeded", record
    assert record.stages["d"].output == "d done"
    assert all(s.box is not None and s.box.host for s in record.stages.values())
    files = [line["files"] for line in farm.lines() if "closed" in line]
    assert {"/workspace/input/big.bin": len(data), "/workspace/input/empty": 0}.items() <= files[-4].items()
    assert {n: files[-1][f"/workspace/input/{n}"] for n in ("b.md", "c.md")} == {"b.md": 6, "c.md": 6}
    contexts = {line["traceparent"] for line in farm.lines() if "traceparent" in line}
    assert {traceparent(record.id, stage, 1) for stage in "abcd"} <= contexts
    again = await house.run(spec)
    assert again.stages["a"].cached is not None, "the cache serves stages of a cluster as well"


async def test_placement_by_size(house: House, farm: Farm) -> None:
    """What only the large worker has room for runs there; what nobody has room for is refused."""
    record = await house.run(parallel(*(f"big-{i}" for i in range(6)), memory_mb=2048))
    assert record.state == "succeeded"
    assert len(farm.lines(farm.workers[0].pid)) >= 12
    with pytest.raises(UserError, match=r"asks for 9000 MiB and 1 vCPUs; no worker .*8096 MiB at most"):
        await house.runner.submit(parallel("huge", memory_mb=9000))
    with pytest.raises(UserError, match="volume, which lies on one host"):
        await house.runner.submit(parallel("v", volumes=(Mount(volume="v", path="/data"),)))


async def test_events_in_order(house: House) -> None:
    """Nothing of a chatty stage is lost, doubled or out of order, and it costs few events."""
    names = [f"chat-{i}" for i in range(4)]
    record = await house.run(parallel(*names))
    assert record.state == "succeeded"
    for name in names:
        bodies = await house.bodies(record.id, name)
        text = "".join(b.text for b in bodies if isinstance(b, AgentText))
        assert text == "".join(f"{i} " for i in range(TEXTS))
        assert sum(isinstance(b, AgentText) for b in bodies) < TEXTS / 4


async def test_a_long_answer(house: House) -> None:
    """It comes in pieces and is kept whole."""
    record = await house.run(parallel("long", command=("/bin/x", "long")))
    file = record.stages["long"].output_file
    assert file is not None
    assert (await house.artifacts.read(file.digest)).decode() == "é" * 3_000_000


async def test_two_hundred_stages(house: House, farm: Farm) -> None:
    """Both workers have their part of them."""
    before = Counter(line["pid"] for line in farm.lines() if "open" in line)
    began = time.monotonic()
    record = await house.run(parallel(*(f"s-{i}" for i in range(200))), 60)
    print(f"200 stages in {time.monotonic() - began:.1f} s")
    assert record.state == "succeeded"
    after = Counter(line["pid"] for line in farm.lines() if "open" in line)
    shares = {pid: after[pid] - before[pid] for pid in after}
    assert sum(shares.values()) == 200
    assert min(shares.values()) >= 10, shares


async def test_cancel_reaches_the_worker(house: House, farm: Farm) -> None:
    """Model, processes, box, in this order; what was still paid for is counted."""
    run = (await house.runner.submit(parallel("paid-a"))).id
    await house.until(run, "paid-a", "running")
    await anyio.sleep(0.3)
    began = time.monotonic()
    await house.runner.cancel(run)
    assert await house.runner.finished(run, 10)
    assert time.monotonic() - began < 5
    assert (await house.runner.store.get_run(run)).state == "cancelled"
    assert farm.open() == 0
    assert [line["log"] for line in farm.lines() if "closed" in line][-1][-3:] == ["model", "processes", "box"]


async def test_budgets_count(house: House) -> None:
    """Each call of the model is metered here, and the stage ends when its tokens are spent."""
    record = await house.run(parallel("paid-b", budget=Budget(tokens=35)))
    stage = record.stages["paid-b"]
    assert stage.state == "failed"
    assert stage.trouble is not None
    assert stage.trouble.cause == "budget"
    calls = [b for b in await house.bodies(record.id) if isinstance(b, ModelCall)]
    assert stage.tokens.total == 10 * len(calls) >= 40


async def test_troubles_keep_their_kind(house: House) -> None:
    """Of the five; a worker without a key says which host it is."""
    record = await house.run(parallel("failing", "keyless", command=("/bin/x", "exit-3")))
    trouble = record.stages["failing"].trouble
    assert trouble is not None
    assert (trouble.kind, trouble.cause, trouble.exit_code) == ("command", "agent-failed", 3)
    trouble = record.stages["keyless"].trouble
    assert trouble is not None
    assert (trouble.kind, trouble.cause) == ("user", "no-key")
    assert trouble.message.startswith("On the worker ")


async def test_pause(house: House, farm: Farm) -> None:
    """What has not begun does not begin while a run is paused, wherever it waits."""
    spec = parallel(*(f"nap-5-{i}" for i in range(24)))
    run = (await house.runner.submit(spec)).id
    await house.until(run, "nap-5-0", "running")
    await house.runner.pause(run)
    await anyio.sleep(2.0)
    record = await house.runner.store.get_run(run)
    states = Counter(s.state for s in record.stages.values())
    assert set(states) <= {"queued", "succeeded"}, states
    assert states["queued"] >= 8
    assert farm.open() == 0
    await house.runner.resume(run)
    assert await house.runner.finished(run, 30)
    assert (await house.runner.store.get_run(run)).state == "succeeded"


async def test_a_killed_worker(house: House, farm: Farm) -> None:
    """Its stages finish elsewhere, and the events say so."""
    victim = farm.start_worker(65_536, 8)
    await house.workers(3)
    names = ("nap-20-a", "nap-20-b")
    run = (await house.runner.submit(parallel(*names, memory_mb=30_000))).id
    for name in names:
        await house.until(run, name, "running")
    farm.end(victim, signal.SIGKILL)
    other = farm.start_worker(65_536, 8)
    assert await house.runner.finished(run, 60)
    record = await house.runner.store.get_run(run)
    assert record.state == "succeeded", record
    for name in names:
        bodies = await house.bodies(run, name)
        lost = [b for b in bodies if isinstance(b, Notice) and "was lost; the stage begins again" in b.message]
        assert len(lost) == 1
        assert sum(isinstance(b, BoxBooted) for b in bodies) == 2
    assert sum("closed" in line for line in farm.lines(other.pid)) == 2
    farm.end(other)


async def test_a_stage_that_no_worker_survives(house: House, farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried so often, and fails for that."""
    monkeypatch.setattr("voidbox_lab.cluster.follow.MAX_LOST", 0)
    victim = farm.start_worker(65_536, 8)
    await house.workers(3)
    run = (await house.runner.submit(parallel("nap-200", memory_mb=30_000))).id
    await house.until(run, "nap-200", "running")
    farm.end(victim, signal.SIGKILL)
    assert await house.runner.finished(run, 30)
    trouble = (await house.runner.store.get_run(run)).stages["nap-200"].trouble
    assert trouble is not None
    assert (trouble.kind, trouble.cause) == ("provider", "worker-lost")


async def test_a_worker_that_is_closed(house: House, farm: Farm) -> None:
    """It closes its boxes first, and its stages go on elsewhere."""
    leaver = farm.start_worker(4096, 8)
    await house.workers(3)
    run = (await house.runner.submit(parallel(*(f"nap-8-c{i}" for i in range(16))))).id
    with anyio.fail_after(20):
        while not farm.lines(leaver.pid):
            await anyio.sleep(0.05)
    await anyio.to_thread.run_sync(farm.end, leaver)
    lines = farm.lines(leaver.pid)
    assert sum("open" in line for line in lines) == sum("closed" in line for line in lines)
    assert "ended" in lines[-1]
    assert await house.runner.finished(run, 60)
    assert (await house.runner.store.get_run(run)).state == "succeeded"


async def test_a_daemon_that_dies(farm: Farm, house: House, tmp_path: Path) -> None:
    """Its workers end what they did for it, and nobody else's."""
    brief = farm.start_worker(65_536, 8, lease_s=2.0)
    await house.workers(3)
    dying = farm.start_daemon(tmp_path / "other", "nap-300")
    with anyio.fail_after(30):
        while not farm.lines(brief.pid):
            await anyio.sleep(0.05)
        farm.end(dying, signal.SIGKILL)
        while "closed" not in farm.lines(brief.pid)[-1]:
            await anyio.sleep(0.05)
    farm.end(brief)


async def test_another_image(farm: Farm, house: House) -> None:
    """A worker that would run something else than the daemon thinks is found out."""
    odd = farm.start_worker(65_536, 8, VOIDBOX_TEST_IDENTITY="sha256:other")
    await house.workers(3)
    record = await house.run(parallel("odd", memory_mb=32_768))
    trouble = record.stages["odd"].trouble
    assert trouble is not None
    assert (trouble.kind, trouble.cause) == ("provider", "image-differs")
    farm.end(odd)


async def test_the_scheduler_goes(tmp_path: Path) -> None:
    """No workers, no scheduler, and one again: each is said, none is waited for without end."""
    with open_farm(tmp_path) as farm:
        async with open_house(tmp_path / "house", farm.address) as house:
            with pytest.raises(
                ProviderError, match=r"start one on each host with `voidbox worker tcp://"
            ) as caught:
                await house.runner.submit(parallel("a"))
            assert caught.value.cause == "cluster"
            farm.start_worker()
            await house.workers(1)
            run = (await house.runner.submit(parallel("nap-300"))).id
            await house.until(run, "nap-300", "running")
            assert farm.scheduler is not None
            farm.end(farm.scheduler, signal.SIGKILL)
            assert await house.runner.finished(run, 30)
            trouble = (await house.runner.store.get_run(run)).stages["nap-300"].trouble
            assert trouble is not None
            assert (trouble.kind, trouble.cause) == ("provider", "cluster")
            with pytest.raises(ProviderError, match="scheduler"):
                await house.runner.submit(parallel("b"))
            farm.workers[0].wait(timeout=30)
            lines = farm.lines()
            assert sum("open" in line for line in lines) == sum("closed" in line for line in lines) == 1
