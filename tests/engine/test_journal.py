"""The journal: text joined, order kept, readers told, nothing lost when the store refuses for a while."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.conformance import run_spec
from voidbox_lab.daemon.core import _bury
from voidbox_lab.engine import Journal
from voidbox_lab.engine import journal as module
from voidbox_lab.engine.journal import joined
from voidbox_lab.errors import ProviderError
from voidbox_lab.spec import Trouble
from voidbox_lab.spec.events import (
    MAX_TEXT,
    AgentLog,
    AgentText,
    Body,
    Event,
    ModelCall,
    RunChanged,
    StageChanged,
    ToolCall,
)
from voidbox_lab.store import Entry, SqliteStore

CALL = ModelCall(request="q", model="m", source="live", status=200, cost_usd=0.5, duration_s=1)


class Watched:
    """What a store is asked to append; `refuse` names a run that it cannot write, and says why."""

    def __init__(self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        self.refuse: dict[str, Exception] = {}
        self._append = store.append
        monkeypatch.setattr(store, "append", self.append)

    async def append(self, run: str, entries: Sequence[Entry]) -> list[Event]:
        self.calls.append((run, len(entries)))
        if error := self.refuse.get(run):
            raise error
        return await self._append(run, entries)


async def _store(tmp_path: Path, *runs: str, **how: int) -> SqliteStore:
    store = await SqliteStore.open(tmp_path / "s.sqlite", **how)
    for run in runs:
        await store.create_run(run, run_spec(), at=0)
    return store


async def _bodies(store: SqliteStore, run: str) -> list[Body]:
    return [e.body for e in await store.read_events(run, limit=5000)]


PIECES = st.tuples(
    st.sampled_from(["a", "b"]), st.integers(0, 1), st.text(max_size=5), st.sampled_from(["text", "log"])
)


@given(st.lists(PIECES, max_size=30))
def test_joining_changes_neither_text_nor_order(pieces: Sequence[tuple[str, int, str, str]]) -> None:
    entries = [
        Entry(AgentText(text=t, block=b) if kind == "text" else AgentLog(text=t), s, float(i))
        for i, (s, b, t, kind) in enumerate(pieces)
    ]
    out = joined(entries)

    def flat(of: Sequence[Entry]) -> list[Any]:
        """One item for each character, and one for each log line."""
        return [
            item
            for e in of
            for item in (
                [(e.stage, e.body.block, c) for c in e.body.text] if isinstance(e.body, AgentText) else [e.body]
            )
        ]

    assert flat(out) == flat(entries)
    for left, right in pairwise(out):
        if isinstance(left.body, AgentText) and isinstance(right.body, AgentText):
            assert (left.stage, left.body.block) != (right.stage, right.body.block), "neighbours were not joined"


def test_joined_text_stays_within_its_bound() -> None:
    out = joined([Entry(AgentText(text="x" * 40_000), "a", 0)] * 3)
    assert all(len(e.body.text) <= MAX_TEXT for e in out)  # type: ignore[union-attr]
    assert sum(len(e.body.text) for e in out) == 120_000  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_a_reader_is_told(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.sqlite")
    await store.create_run("r", run_spec(), at=0)
    journal = Journal(store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal.serve)
        news = journal.news("r")
        await journal.emit("r", "one", AgentText(text="a"))
        await journal.emit("r", "one", AgentText(text="b"))
        with anyio.fail_after(2):
            await news.wait()
        assert [e.body for e in await store.read_events("r")] == [AgentText(text="ab")]
        tasks.cancel_scope.cancel()
    await store.aclose()


@pytest.mark.anyio
async def test_who_only_looks_on_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that fails at an event keeps it neither from the store nor from the others."""
    store = await SqliteStore.open(tmp_path / "s.sqlite")
    await store.create_run("r", run_spec(), at=0)
    told: list[int] = []

    def fails(run: str, events: Sequence[Event]) -> None:
        raise OverflowError("int too large to convert to float")

    journal = Journal(store, recorded=[fails, lambda _, events: told.append(len(events))])
    await journal.record("r", "one", AgentText(text="a"))
    assert [e.body for e in await store.read_events("r")] == [AgentText(text="a")]
    assert told == [1]
    assert "not told to all" in caplog.text
    await store.aclose()


@pytest.mark.anyio
async def test_nothing_stays_of_a_run_that_nobody_follows(tmp_path: Path) -> None:
    """A reader asks for news before it learns that the run is over; its event goes with it."""
    store = await SqliteStore.open(tmp_path / "s.sqlite")
    await store.create_run("r", run_spec(), at=0)
    journal = Journal(store)
    await journal.record("r", None, RunChanged(state="succeeded"))
    news = journal.news("r")
    assert journal.news("r") is news, "readers of one run share it"
    gone = weakref.ref(news)
    del news
    gc.collect()
    assert gone() is None
    await store.aclose()


@pytest.mark.anyio
async def test_what_is_refused_for_a_while_is_written_in_order_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await SqliteStore.open(tmp_path / "s.sqlite")
    await store.create_run("r", run_spec(), at=0)
    journal = Journal(store)

    async def full(*_: Any) -> Any:
        raise ProviderError("disk full", cause="store")

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", full)
        for name in ("a", "b"):
            with pytest.raises(ProviderError):
                await journal.record("r", "one", AgentLog(text=name))
    await journal.record("r", "one", AgentLog(text="c"))
    assert [e.body.text for e in await store.read_events("r")] == ["a", "b", "c"]  # type: ignore[union-attr]
    await store.aclose()


@pytest.mark.anyio
async def test_what_is_out_of_bounds_is_dropped_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = await SqliteStore.open(tmp_path / "s.sqlite")
    await store.create_run("r", run_spec(), at=0)
    journal = Journal(store)
    journal.post("r", "one", AgentLog(text="a"))
    journal.post("r", "one", ToolCall(id="t", name="n", input={"x": "y" * 600_000}))
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"deeper": deep}
    journal.post("r", "one", ToolCall(id="t", name="n", input=deep))
    journal.post("r", "one", ToolCall(id="t", name="n", input={"x": "\ud800"}))
    journal.post("no-such-run", "one", AgentLog(text="late"))
    await journal.record("r", "one", AgentLog(text="b"))
    assert [e.body.text for e in await store.read_events("r")] == ["a", "b"]  # type: ignore[union-attr]
    assert "dropped" in caplog.text
    await store.aclose()


@pytest.mark.anyio
async def test_a_run_that_cannot_be_written_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await _store(tmp_path, "bad", "good", "last")
    watched, journal = Watched(store, monkeypatch), Journal(store)
    watched.refuse["bad"] = ProviderError("damaged", cause="store")
    journal.post("bad", "one", AgentLog(text="a"))
    await journal.record("good", "one", AgentLog(text="b"))
    journal.post("last", "one", AgentLog(text="c"))
    with pytest.raises(ProviderError, match="damaged"):
        await journal.flush()
    assert await _bodies(store, "last") == [AgentLog(text="c")], "those behind it are written all the same"
    await journal.flush("good")
    with pytest.raises(ProviderError, match="damaged"):
        await journal.record("bad", None, RunChanged(state="running"))
    watched.refuse.clear()
    await journal.flush("bad")
    assert await _bodies(store, "bad") == [AgentLog(text="a"), RunChanged(state="running")]
    await store.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ProviderError("damaged", cause="store"), ZeroDivisionError("a bug")])
async def test_serving_goes_on_whatever_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    monkeypatch.setattr(module, "RETRY_S", (0.2, 0.4))
    store = await _store(tmp_path, "bad", "good")
    watched, journal = Watched(store, monkeypatch), Journal(store)
    watched.refuse["bad"] = error
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal.serve)
        journal.post("bad", "one", AgentLog(text="a"))
        with anyio.fail_after(5):
            for i in range(8):
                news = journal.news("good")
                journal.post("good", "one", AgentLog(text=str(i)))
                await news.wait()
            assert 0 < watched.calls.count(("bad", 1)) < 5, "it is tried again, but less often"
            assert caplog.text.count("cannot be written") == 1, "said once per second at most"
            watched.refuse.clear()
            await journal.news("bad").wait()
        tasks.cancel_scope.cancel()
    assert await _bodies(store, "bad") == [AgentLog(text="a")]
    await store.aclose()


@pytest.mark.anyio
async def test_what_waits_of_a_failing_run_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 3)
    store = await _store(tmp_path, "bad")
    watched, journal = Watched(store, monkeypatch), Journal(store)
    watched.refuse["bad"] = ProviderError("damaged", cause="store")
    for i in range(5):
        journal.post("bad", "one", AgentLog(text=str(i)))
    with pytest.raises(ProviderError):
        await journal.flush("bad")
    for i in range(5):
        journal.post("bad", "one", AgentLog(text=f"more {i}"))
        journal.post("bad", "one", CALL)
    journal.post("bad", "one", StageChanged(state="booting"))
    watched.refuse.clear()
    await journal.flush("bad")
    logs = [AgentLog(text=str(i)) for i in range(3)]
    assert await _bodies(store, "bad") == [*logs, *[CALL] * 5, StageChanged(state="booting")]
    assert caplog.text.count("are dropped") == 1
    await store.aclose()


@pytest.mark.anyio
async def test_a_full_run_costs_the_store_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await _store(tmp_path, "full", max_events=10)
    watched, journal = Watched(store, monkeypatch), Journal(store)
    for i in range(100):
        journal.post("full", "one", AgentLog(text=str(i)))
    journal.post("full", "one", CALL)
    await journal.record("full", "one", StageChanged(state="booting"))
    assert watched.calls == [("full", 102), ("full", 12)]
    assert await _bodies(store, "full") == [
        *(AgentLog(text=str(i)) for i in range(10)), CALL, StageChanged(state="booting"),
    ]  # fmt: skip
    for _ in range(100):
        journal.post("full", "one", AgentLog(text="x"))
    await journal.flush()
    assert len(watched.calls) == 2, "it is not even asked"
    await journal.record("full", None, RunChanged(state="failed"))
    assert watched.calls[2:] == [("full", 1)]
    await store.aclose()


@pytest.mark.anyio
async def test_of_a_deleted_run_all_is_dropped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await _store(tmp_path)
    watched, journal = Watched(store, monkeypatch), Journal(store)
    for _ in range(100):
        journal.post("gone", "one", AgentLog(text="x"))
    await journal.flush("gone")
    assert watched.calls == [("gone", 100)]
    await store.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer", ["\ud800 hi", "\x01" * 131_072, "\ud800" + "\x01" * 131_072], ids=["surrogate", "large", "both"]
)
async def test_an_answer_that_is_no_event_ends_its_stage_all_the_same(tmp_path: Path, answer: str) -> None:
    """A lone surrogate has no JSON form, and as JSON a control character is six."""
    store = await _store(tmp_path, "r")
    journal = Journal(store)
    trouble = Trouble(kind="command", message="\udfff!")
    await journal.record("r", "one", StageChanged(state="succeeded", output=answer))
    await journal.record("r", None, RunChanged(state="failed", trouble=trouble))
    record = await store.get_run("r")
    assert (record.state, record.stages["one"].state) == ("failed", "succeeded")
    assert record.trouble == Trouble(kind="command", message="\ufffd!")
    assert answer.replace("\ud800", "\ufffd").startswith(record.stages["one"].output or "?")
    await store.aclose()


@pytest.mark.anyio
async def test_a_bad_run_does_not_keep_a_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = await _store(tmp_path, "older", "bad", "newer")
    for run in ("older", "bad", "newer"):
        await store.append(run, [Entry(RunChanged(state="running"), None, 1)])
    Watched(store, monkeypatch).refuse["bad"] = ProviderError("damaged", cause="store")
    await _bury(store, Journal(store))
    assert [(await store.get_run(run)).state for run in ("older", "newer")] == ["interrupted"] * 2
    assert "bad cannot be put to rest" in caplog.text
    await store.aclose()
