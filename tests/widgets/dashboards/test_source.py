"""What dashboards read of the daemon: what is new and what goes on, no more often than allowed, bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.widgets.dashboards.samples import spec
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import TERMINAL, RunRecord
from voidbox_lab.spec.events import AgentText, Body, Event, RunChanged
from voidbox_lab.store.fold import new_record
from voidbox_lab.widgets.dashboards import source
from voidbox_lab.widgets.dashboards.source import BUSY_S, PAGE, QUIET_S, WHOLE_S, Runs


def record(number: int, state: str = "succeeded") -> RunRecord:
    made = new_record(f"run-{number:012x}", spec(number), at=1000.0 + number)
    ended = 2000.0 if state in TERMINAL else None
    return made.model_copy(update={"state": state, "finished_at": ended})


class Daemon:
    """A daemon's runs, newest first, and what was asked of it; stands in for `Client` too."""

    def __init__(self) -> None:
        self.records: list[RunRecord] = []
        self.last: dict[str, Body] = {}
        """The last event of a run; else it is a word."""
        self.asked: list[str] = []
        self.starts: list[bool] = []
        self.down = False
        self.lost = False

    def __call__(self, _settings: Settings, *, start: bool, env: dict[str, str]) -> Daemon:
        assert env == {}, "a reader hands over no keys"
        self.starts.append(start)
        return self

    def __enter__(self) -> Daemon:
        if self.down:
            raise httpx.ConnectError("no socket")
        return self

    def close(self) -> None:
        pass

    def runs(self, *, limit: int, before: str | None) -> list[RunRecord]:
        self.asked.append(f"page before {before}" if before else "page")
        if self.lost:
            self.lost = False
            raise ProviderError("The connection was lost.", cause="daemon-lost")
        ids = [r.id for r in self.records]
        start = ids.index(before) + 1 if before else 0
        return self.records[start : start + limit]

    def run(self, run: str) -> RunRecord:
        self.asked.append(run)
        for found in self.records:
            if found.id == run:
                return found
        raise UserError("There is no such run.", cause="unknown-run")

    def events(self, run: str, after: int = 0, *, follow: bool, tail: int | None) -> Iterator[Event]:
        assert not follow
        self.asked.append(f"events after {after}, tail {tail}")
        if tail == 1:
            if all(r.id != run for r in self.records):
                raise UserError("There is no such run.", cause="unknown-run")
            after = 99
        for seq in range(after + 1, 101):
            body = self.last.get(run) if seq == 100 else None
            yield Event(seq=seq, run=run, at=0.0, stage=None, body=body or AgentText(text="x"))


class Clock:
    """A time that is set."""

    now = 10_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """In the client's place."""
    made = Daemon()
    monkeypatch.setattr(source, "Client", made)
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reader(clock: Clock, **options: Any) -> Runs:
    return Runs(Settings.from_env(), clock=clock, **options)


def ids(runs: Runs) -> list[int]:
    return [int(run.id[4:], 16) for run in runs.snapshot.runs]


def test_all_pages_at_first_then_what_is_new(daemon: Daemon, clock: Clock) -> None:
    daemon.records = [record(n) for n in range(120, 0, -1)]
    runs = reader(clock)
    first = runs.open()
    assert len(daemon.asked) == 3
    assert ids(runs) == list(range(120, 0, -1))
    assert not first.more
    daemon.records.insert(0, record(121))
    daemon.asked.clear()
    clock.now += QUIET_S
    second = runs.refresh()
    assert daemon.asked == ["page"], "the rest has ended and cannot change"
    assert ids(runs) == list(range(121, 0, -1))
    assert second.version == first.version + 1


def test_no_more_often_than_allowed(daemon: Daemon, clock: Clock) -> None:
    """However many pages ask: seldom while nothing runs, often while something does."""
    daemon.records = [record(1)]
    runs = reader(clock)
    runs.open()
    clock.now += QUIET_S - 1
    runs.refresh()
    assert daemon.asked == ["page"]
    daemon.records = [record(2, "running"), record(1)]
    clock.now += 1
    assert runs.refresh().active == 1
    clock.now += BUSY_S - 0.5
    runs.refresh()
    assert len(daemon.asked) == 2
    clock.now += 0.5
    runs.refresh()
    assert len(daemon.asked) == 3


def test_what_goes_on_is_asked_for_though_it_is_old(daemon: Daemon, clock: Clock) -> None:
    daemon.records = [record(n, "running" if n in {2, 3} else "succeeded") for n in range(PAGE + 10, 0, -1)]
    runs = reader(clock)
    runs.open()
    daemon.records = [r for r in daemon.records if r.id != record(3).id]
    daemon.records[-2] = record(2)
    daemon.asked.clear()
    clock.now += BUSY_S
    snapshot = runs.refresh()
    assert sorted(daemon.asked) == sorted(["page", record(2).id, record(3).id])
    assert snapshot.active == 0
    assert 3 not in ids(runs), "it was deleted"
    assert len(snapshot.runs) == PAGE + 9


def test_an_interrupted_run_rests_until_it_is_resumed(daemon: Daemon, clock: Clock) -> None:
    """It is not running, and nothing is read the more often for it."""
    daemon.records = [record(2, "interrupted"), record(1)]
    runs = reader(clock)
    assert runs.open().active == 0
    clock.now += QUIET_S - 1
    runs.refresh()
    assert daemon.asked == ["page"]
    daemon.records[0] = record(2, "running")
    clock.now += 1
    assert runs.refresh().active == 1


def test_of_an_old_interrupted_run_the_last_event_is_read(daemon: Daemon, clock: Clock) -> None:
    """Which says whether somebody has resumed it; its record is read where that is so."""
    daemon.records = [record(n, "interrupted" if n in {2, 3} else "succeeded") for n in range(PAGE + 10, 0, -1)]
    old = record(2).id
    daemon.last[old] = RunChanged(state="interrupted")
    runs = reader(clock)
    runs.open()
    daemon.records = [r for r in daemon.records if r.id != record(3).id]
    daemon.asked.clear()
    clock.now += QUIET_S
    assert runs.refresh().active == 0
    assert daemon.asked == ["page", *["events after 0, tail 1"] * 2]
    assert 2 in ids(runs)
    assert 3 not in ids(runs), "it was deleted"
    daemon.records[-2], daemon.last[old] = record(2, "running"), RunChanged(state="running")
    clock.now += QUIET_S
    assert runs.refresh().active == 1
    assert daemon.asked[-1] == old


def test_deleted_runs_go(daemon: Daemon, clock: Clock) -> None:
    """New ones at once, old ones when everything is read anew."""
    daemon.records = [record(n) for n in range(PAGE + 20, 0, -1)]
    runs = reader(clock)
    runs.open()
    daemon.records = [r for r in daemon.records if r.id not in {record(60).id, record(1).id}]
    clock.now += QUIET_S
    runs.refresh()
    assert 60 not in ids(runs)
    assert 1 in ids(runs)
    clock.now += WHOLE_S + 1
    runs.refresh()
    assert ids(runs) == [n for n in range(PAGE + 20, 1, -1) if n != 60]


def test_the_same_runs_are_the_same_version(daemon: Daemon, clock: Clock) -> None:
    """So that pages have nothing to draw."""
    daemon.records = [record(1)]
    runs = reader(clock)
    version = runs.open().version
    clock.now += QUIET_S
    assert runs.refresh().version == version
    assert len(daemon.asked) == 2


def test_their_number_is_bounded_and_said(daemon: Daemon, clock: Clock) -> None:
    daemon.records = [record(n) for n in range(300, 0, -1)]
    runs = reader(clock, limit=120)
    assert runs.open().more
    assert ids(runs) == list(range(300, 180, -1))
    assert len(daemon.asked) == 3
    daemon.records.insert(0, record(301))
    clock.now += QUIET_S
    assert runs.refresh().more
    assert ids(runs) == list(range(301, 181, -1))


def test_many_stages_are_a_bound_too(daemon: Daemon, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_STAGES", 30)
    daemon.records = [record(n) for n in range(40, 0, -1)]
    runs = reader(clock)
    assert runs.open().more
    assert len(runs.snapshot.runs) == 10, "of three stages each"


def test_another_daemon_is_found_and_none_is_started(daemon: Daemon, clock: Clock) -> None:
    """A daemon that was stopped stays so; the runs stay in sight, and the page says why they are old."""
    daemon.records = [record(1)]
    runs = reader(clock)
    runs.open()
    daemon.lost = True
    clock.now += QUIET_S
    assert runs.refresh().trouble is None
    assert daemon.starts == [True, False]
    daemon.lost = daemon.down = True
    clock.now += QUIET_S
    snapshot = runs.refresh()
    assert snapshot.trouble == "No daemon answers; it starts with the next run."
    assert ids(runs) == [1]
    daemon.down = False
    clock.now += QUIET_S
    assert runs.refresh().trouble is None


def test_the_first_reading_raises(daemon: Daemon, clock: Clock) -> None:
    daemon.down = True
    with pytest.raises(ProviderError, match="No daemon answers"):
        reader(clock).open()


def test_events_are_bounded(daemon: Daemon, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_EVENTS", 40)
    runs = reader(clock)
    runs.open()
    daemon.asked.clear()
    assert len(runs.events("run-1")) == 40
    assert [e.seq for e in runs.events("run-1", 90)] == list(range(91, 101))
    assert daemon.asked == ["events after 0, tail 40", "events after 90, tail None"]
