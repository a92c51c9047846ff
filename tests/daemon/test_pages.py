"""Readers of one run share what it costs to read it, and each gets every event, once, in order."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import anyio
import pytest

from voidbox_lab.daemon import pages
from voidbox_lab.daemon.pages import Pages, encoded
from voidbox_lab.engine import Journal
from voidbox_lab.spec import Pipeline, VoidBoxSpec
from voidbox_lab.spec.events import AgentText, RunChanged
from voidbox_lab.store import DirectoryStore, Entry, Store

pytestmark = pytest.mark.anyio
LIMIT = 7


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    store = await DirectoryStore.open(tmp_path / "runs")
    spec = Pipeline.of(VoidBoxSpec(name="one", command=("true",))).run_spec()
    await store.create_run("r1", spec, at=0)
    yield store
    await store.aclose()


def text(n: int) -> Entry:
    return Entry(AgentText(text=f"é{n}", block=n), "one", float(n))


def counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    reads: list[int] = []
    real = store.read_events

    async def read(*args: Any, **options: Any) -> Any:
        found = await real(*args, **options)
        reads.append(len(found))
        return found

    monkeypatch.setattr(store, "read_events", read)
    return reads


async def test_many_readers_one_read(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each event, whatever moment they come at; and of nothing, at the end."""
    reads = counted(store, monkeypatch)
    journal, shared = Journal(store), Pages(store)
    got: list[bytearray] = [bytearray() for _ in range(20)]

    async def follow(into: bytearray) -> None:
        after, ends, mine = 0, False, shared.of("r1")
        while not ends:
            news = journal.news("r1")
            if page := await mine.after(after, news, LIMIT):
                into.extend(b"".join(page.chunks))
                after, ends = page.last, page.ends
            else:
                await news.wait()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for into in got:
                tasks.start_soon(follow, into)
            for n in range(50):
                await journal.record("r1", "one", AgentText(text=f"é{n}", block=n))
                if n % 5 == 0:
                    await anyio.sleep(0.002)
            await journal.record("r1", None, RunChanged(state="succeeded"))
            await journal.record("r1", "one", AgentText(text="after the end", block=99))
    events = await store.read_events("r1", limit=1000)
    assert set(map(bytes, got)) == {b"".join(map(encoded, events[:51]))}
    assert sum(reads[:-1]) <= 52, "an event was read twice"
    assert len(reads) < 200
    gc.collect()
    assert not shared._runs, "pages are kept that nobody follows"


async def test_a_page_that_has_grown(store: Any) -> None:
    """What was short for the first who asked may have a successor: who gets it later looks on."""
    journal, mine = Journal(store), Pages(store).of("r1")
    await store.append("r1", [text(n) for n in range(3)])
    first = await mine.after(0, journal.news("r1"), LIMIT)
    again = await mine.after(0, journal.news("r1"), LIMIT)
    assert first is not None
    assert again is not None
    assert (first.last, first.more, again.last, again.more) == (3, False, 3, True)
    assert again.chunks == first.chunks


async def test_nothing_is_not_believed_for_ever(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that came past the journal are found."""
    monkeypatch.setattr(pages, "NOTHING_S", 0.05)
    news, mine = Journal(store).news("r1"), Pages(store).of("r1")
    assert await mine.after(0, news, LIMIT) is None
    await store.append("r1", [text(1)])
    assert await mine.after(0, news, LIMIT) is None
    await anyio.sleep(0.06)
    assert await mine.after(0, news, LIMIT) is not None


async def test_what_is_kept_is_bounded(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes; what is not kept is read again."""
    monkeypatch.setattr(pages, "KEPT_BYTES", 2000)
    monkeypatch.setattr(pages, "CHUNK", 300)
    await store.append("r1", [text(n) for n in range(60)])
    news, mine = Journal(store).news("r1"), Pages(store).of("r1")
    for _ in range(2):
        after, sent = 0, b""
        while page := await mine.after(after, news, LIMIT):
            assert all(chunk.endswith(b"\n\n") and len(chunk) < 500 for chunk in page.chunks)
            sent += b"".join(page.chunks)
            after = page.last
        assert sent == b"".join(map(encoded, await store.read_events("r1", limit=1000)))
        assert mine._bytes == sum(len(c) for p in mine._pages.values() for c in p.chunks) <= 2000
