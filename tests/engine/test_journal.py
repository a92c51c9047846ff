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
from voidbox_lab.engine import Journal
from voidbox_lab.engine.journal import joined
from voidbox_lab.errors import ProviderError
from voidbox_lab.spec.events import MAX_TEXT, AgentLog, AgentText, RunChanged, ToolCall
from voidbox_lab.store import Entry, SqliteStore

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
