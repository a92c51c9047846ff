"""What needs no box measures what it says, in small; times are nobody's business here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from voidbox_lab import bench
from voidbox_lab.bench import engine, million, mock, readers, suite, view
from voidbox_lab.bench.samples import Figure
from voidbox_lab.bench.stand import Desk, desk
from voidbox_lab.errors import BoxLost, ProviderError, UserError
from voidbox_lab.spec import Pipeline, VoidBoxSpec
from voidbox_lab.store import SqliteStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def place() -> Iterator[Desk]:
    """A desk for one sample."""
    with desk(0.2) as here:
        yield here
    assert not here.work.exists()


def sound(figures: list[Figure]) -> dict[str, Figure]:
    """By name; each was measured, and its floor."""
    for figure in figures:
        for series in (figure.subject, figure.floor):
            assert series is None or (series.samples and all(map(math.isfinite, series.samples))), series
    named = {figure.subject.name: figure for figure in figures}
    assert len(named) == len(figures)
    return named


async def test_engine(place: Desk) -> None:
    """All shapes end well, once by running and once from the cache; each stage has its seven changes of state."""
    figures = sound(await engine.overhead(place, stages=9, fewer=4))
    assert len(figures) == 4 * len(engine.SHAPES)
    for shape in engine.SHAPES:
        events = figures[f"{shape}, events per stage"].subject.samples
        assert all(7 + 2 / 9 <= each < 9 for each in events), "a stage's own, the run's begin and end, a few waits"
        assert figures[f"{shape}, growth"].floor is not None
        assert figures[f"{shape}, a stage from the cache"].ratio


async def test_a_cache_that_is_not_used_makes_no_figure(place: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that ran again would be measured as one from the cache."""

    async def never(*_: object) -> None:
        return None

    monkeypatch.setattr(engine.StageCache, "find", never)
    with pytest.raises(ExceptionGroup) as raised:
        await engine.overhead(place, stages=3, fewer=2)
    assert "ran again" in suite.failure("engine", raised.value).message


async def test_readers(place: Desk) -> None:
    """Each of five gets the lines of a real daemon process, in order."""
    figures = sound(await readers.following(place, readers=5, rate=2000, seconds=0.3))
    assert len(figures) == 5
    assert figures["delivered to 5 readers"].subject.unit == "events/s"


async def test_a_reader_that_misses_something_makes_no_figure(
    place: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its process says so, and that is believed."""
    liar = tmp_path / "liar.py"
    said = '{"events": 700, "in_order": false, "lags": [0.1], "ended": 1.0}'
    liar.write_text(f"print('ready', flush=True)\ninput()\nprint('{said}')\n")
    monkeypatch.setattr(readers.reader_process, "__file__", str(liar))
    with pytest.raises(ProviderError, match="in order"):
        await readers.following(place, readers=2, rate=2000, seconds=0.2)


async def test_million(place: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 events, in one store."""
    monkeypatch.setattr(million, "STORES", ("directory",))
    figures = sound(await million.looks(place, events=5000, few=500))
    assert len(figures) == 11
    assert figures["events_frame of 1,000, directory, memory"].floor is not None


async def test_view(place: Desk) -> None:
    """Messages no more often than ten times a second, and no larger after many lines; that is no time."""
    figures = sound(await view.showing(place, lines=30_000, seconds=1.0))
    assert len(figures) == 6
    assert figures["fold of an event"].floor is not None
    messages = next(f for name, f in figures.items() if name.startswith("messages to a browser"))
    assert messages.met
    for what in ("a message", "the whole view"):
        assert figures[f"{what} after 6,000 lines"].ratio == pytest.approx(1, abs=0.1)


async def test_a_filled_run_has_as_many_events_as_asked_for(tmp_path: Path) -> None:
    """And has ended well."""
    store = await SqliteStore.open(tmp_path / "runs.sqlite")
    for events in (4, 5, 100, 5003):
        await million.fill(store, f"r{events}", events)
        assert await store.count_events(f"r{events}") == events
        assert (await store.get_run(f"r{events}")).state == "succeeded"
    await store.aclose()


async def test_they_need_no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    """And are made where there is none."""

    def stand(_memory_mb: int, _effort: float) -> None:
        raise AssertionError("a stand was asked for")

    monkeypatch.setattr(suite, "stand", stand)
    monkeypatch.setattr(engine, "STAGES", 4)

    async def overhead(place: Desk) -> list[Figure]:
        return await engine.overhead(place, stages=3, fewer=2)

    monkeypatch.setitem(suite.BOXLESS, "engine", overhead)
    report = await bench.run(["engine"], effort=0.2)
    assert {figure.bench for figure in report.figures} == {"engine"}
    assert not report.failures
    assert "sqlite" in report.machine
    assert {"engine", "readers"} <= set(suite.USUAL)
    assert "million" not in suite.USUAL


async def test_boxes_in_memory_are_honest() -> None:
    """They know two commands, a killed process says so, and a closed box runs nothing."""
    boxes = mock.MockBoxes()
    box = await boxes.open(memory_mb=192, vcpus=1)
    process = await box.start_exec(mock.ticks(1000, 30))
    with anyio.fail_after(5):
        first = await anext(process.stdout)
        assert first.startswith(b"1\n")
        await process.kill()
        assert (await process.wait()).signal == 9
    with pytest.raises(UserError, match="rm"):
        await box.start_exec(("rm",))
    await box.close()
    await box.close()
    assert (boxes.opened, boxes.closed) == (1, 1)
    with pytest.raises(BoxLost):
        await box.start_exec(mock.TRUE)


def test_a_chain_is_a_pipeline() -> None:
    """As composing stage by stage would make it."""
    made = Pipeline.of(engine.box("s1"))
    for n in (2, 3):
        made = made.then(Pipeline.of(engine.box(f"s{n}")))
    assert engine.chain(3).run_spec() == made.run_spec()
    assert isinstance(engine.box("s1"), VoidBoxSpec)
