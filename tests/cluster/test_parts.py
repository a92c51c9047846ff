"""The parts of a cluster that need none: what is said, what is given, and where a worker lives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.cluster.farm import open_house
from tests.engine.lab import box
from voidbox_lab.cluster import station as stations
from voidbox_lab.cluster.flight import Flight
from voidbox_lab.cluster.inputs import Inputs
from voidbox_lab.cluster.outbox import Outbox
from voidbox_lab.cluster.place import own_place
from voidbox_lab.cluster.station import Station
from voidbox_lab.cluster.ticket import Ticket
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import RunSpec, Stage
from voidbox_lab.spec.events import BODY, AgentText, Notice

pytestmark = pytest.mark.anyio


def digest(data: bytes) -> str:
    """Of an input."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def ticket(name: str = "a", **options: Any) -> Ticket:
    """One on its way."""
    given = {"id": "t1", "daemon": "d", "run": "run-1", "files": {}, "upstream": {}, "identity": None, **options}
    return Ticket(stage=Stage(box=box(name)), **given)


async def test_text_is_joined_until_it_is_taken() -> None:
    """Numbers have no gaps, whatever was joined; what was taken does not change any more."""
    outbox = Outbox("t/1", lambda: None)
    for piece in "abc":
        await outbox.emit(AgentText(text=piece))
    first = outbox.take(1000)
    assert [(m[1], BODY.validate_json(m[3]).text) for m in first] == [(1, "abc")]  # type: ignore[union-attr]
    await outbox.emit(AgentText(text="d"))
    await outbox.emit(AgentText(text="e", block=1))
    outbox.post("end", "{}")
    outbox.confirm(1)
    assert [(m[1], m[2]) for m in outbox.take(1000)] == [(2, "event"), (3, "event"), (4, "end")]
    assert not outbox.fresh
    outbox.again()
    assert outbox.fresh
    assert [m[1] for m in outbox.take(1)] == [2], "one message is taken however large it is"
    outbox.confirm(4)
    with anyio.fail_after(1):
        await outbox.confirmed()


async def test_who_is_not_confirmed_waits() -> None:
    """A daemon that does not keep up holds its agents, and not this process's memory."""
    outbox = Outbox("t/1", lambda: None, window=1000)
    with anyio.move_on_after(0.1) as scope:
        for _ in range(100):
            await outbox.emit(Notice(message="x" * 100))
    assert scope.cancelled_caught
    assert len(outbox.take(1 << 20)) < 12


async def test_inputs_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    """Damage on the way, pieces out of order and names that are no digests are refused."""
    inputs = Inputs(tmp_path / "in", keep_bytes=10)
    good = digest(b"hello world")
    assert not await inputs.give("d", good, 0, b"hello ", last=False)
    with pytest.raises(ProviderError, match="out of order"):
        await inputs.give("d", good, 5, b"world", last=True)
    with inputs.held([good]):
        assert await inputs.give("d", good, 6, b"world", last=True)
        assert inputs.path(good).read_bytes() == b"hello world"
    assert inputs.missing([good]) == [good], "it is over the bound, and nobody uses it any more"
    assert await inputs.give("d", digest(b""), 0, b"", last=True)
    with pytest.raises(ProviderError, match="damaged"):
        await inputs.give("d", digest(b"other"), 0, b"this", last=True)
    with pytest.raises(ProviderError, match="is not a digest"):
        await inputs.give("d", "../../etc/passwd", 0, b"", last=True)
    with inputs.held([good]):
        assert await inputs.give("e", good, 0, b"hello world", last=True)
        assert await inputs.give("e", digest(b"0123456789"), 0, b"0123456789", last=True)
        assert inputs.path(good).read_bytes() == b"hello world", "what is used stays, over the bound or not"
    assert inputs.missing([good, digest(b"0123456789")]), "what is not used makes room"
    inputs.close()
    assert not (tmp_path / "in").exists()


def test_workers_of_one_host_do_not_share_a_place(tmp_path: Path) -> None:
    """Each has a directory of its own, the next one has that of one that ended."""
    settings = Settings.from_env({"VOIDBOX_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)[:39]})
    with own_place(settings) as first, own_place(settings) as second:
        assert first.runtime != second.runtime
        assert first.shm != second.shm
        assert first.runtime.parent == settings.runtime
    with own_place(settings) as third:
        assert third.runtime == first.runtime


class _Link:
    host = "h"


def test_only_one_attempt_counts() -> None:
    """What an attempt says that was taken for lost is dropped, its beginning included."""
    flight, link = Flight(ticket()), _Link()
    assert flight.hear(link, "t1/a", 1, "begun", "")  # type: ignore[arg-type]
    assert flight.hear(link, "t1/b", 1, "begun", "")  # type: ignore[arg-type]
    assert not flight.hear(link, "t1/a", 2, "event", "late")  # type: ignore[arg-type]
    assert not flight.hear(link, "t1/a", 1, "begun", "")  # type: ignore[arg-type]
    assert flight.hear(link, "t1/b", 2, "moved", "booting")  # type: ignore[arg-type]
    assert flight.hear(link, "t1/b", 2, "moved", "booting"), "again, and not twice"  # type: ignore[arg-type]
    assert not flight.hear(link, "t1/b", 4, "moved", "running"), "a gap cannot be"  # type: ignore[arg-type]
    heard = [flight.news.receive_nowait().what for _ in range(flight.waiting)]
    assert heard == ["begun", "lost", "begun", "moved"]
    flight.close()


async def test_nothing_begins_without_its_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt opens no box until its daemon has said that it wants it, and ends if that never calls."""
    monkeypatch.setattr(stations, "LEASE_S", 0.4)
    monkeypatch.setenv("VOIDBOX_TEST_TOLD", str(tmp_path / "told"))
    from tests.cluster.doubles import worker_backend

    settings = Settings.from_env({"VOIDBOX_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)[:39]})
    station = Station(worker_backend, settings, "here")
    names: list[str] = []
    async with anyio.create_task_group() as tasks:
        ready = anyio.Event()
        tasks.start_soon(station.serve, ready)
        with anyio.fail_after(10):
            await ready.wait()
            with pytest.raises(ProviderError, match="was not heard of") as caught:
                await station.run(ticket(), names.append)
            assert caught.value.cause == "lease"
            tasks.start_soon(station.run, ticket(id="t2"), names.append)
            reply = await station.exchange("d", {})
            assert [(m[0], m[2]) for m in reply.messages] == [(names[1], "begun")]
            station.leave([names[1]])
            with anyio.fail_after(5):
                while station._attempts:
                    await anyio.sleep(0.01)
            tasks.start_soon(station.run, ticket(id="t3", version="0.0.1"), names.append)
            await station.exchange("d", {})
            reply = await station.exchange("d", {names[2]: 1})
            assert "is voidbox-lab" in reply.messages[-1][3]
            await station.exchange("d", {names[2]: 2})
        station.close()
    assert "open" not in (tmp_path / "told").read_text()


async def test_a_daemon_without_its_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts; a run is refused with what is missing and what to do."""
    spec = RunSpec(stages=(Stage(box=box("a")),))
    async with open_house(tmp_path / "away", "tcp://127.0.0.1:9") as house:
        with pytest.raises(ProviderError, match=r"cannot be reached.*`dask scheduler`") as caught:
            await house.runner.submit(spec)
        assert caught.value.cause == "cluster"
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    async with open_house(tmp_path / "missing", "tcp://127.0.0.1:9") as house:
        with pytest.raises(ProviderError, match=r"pip install 'voidbox-lab\[dask\]'"):
            await house.runner.submit(spec)


def test_the_setting() -> None:
    """Local, or the address of a scheduler."""
    assert Settings.from_env({}).scheduler is None
    assert Settings.from_env({"VOIDBOX_EXECUTOR": "local"}).scheduler is None
    assert Settings.from_env({"VOIDBOX_EXECUTOR": "dask:tls://[::1]:8786"}).scheduler == "tls://[::1]:8786"
    for wrong in ("dask", "dask:host", "dask:http://h:1", "tcp://h:8786"):
        with pytest.raises(UserError, match="VOIDBOX_EXECUTOR"):
            Settings.from_env({"VOIDBOX_EXECUTOR": wrong})
