"""What every `Store` must do. A backend's test module subclasses `StoreContract` and gives `place`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.spec import Model, RunSpec, Stage, Tokens, Trouble, VoidBoxSpec
from voidbox_lab.spec.events import AgentLog, AgentText, Event, ModelCall, RunChanged, StageChanged, ToolCall
from voidbox_lab.store import Entry, Store, open_store, rebuild


def run_spec(*names: str) -> RunSpec:
    """A chain of stages."""
    boxes = [VoidBoxSpec(name=n, prompt="hello", model=Model.parse("scripted:x")) for n in names or ("one",)]
    return RunSpec(stages=tuple(Stage(box=b, needs=(p.name,) if p else ()) for p, b in zip([None, *boxes], boxes)))  # noqa: B905


def text(value: str, stage: str = "one", at: float = 1.0) -> Entry:
    return Entry(AgentText(text=value), stage, at)


ROOT = Path(__file__).parents[2]
KEY, OTHER = (f"sha256:{c * 64}" for c in "ab")
Place = tuple[str, Path]
"""What `open_store` opens: a choice, and the directory below which it is."""

_WRITER = """
import anyio, sys
from pathlib import Path
from tests.store.conformance import run_spec, text
from voidbox_lab.store import open_store

async def main():
    store = await open_store(sys.argv[1], Path(sys.argv[2]))
    await store.create_run("r1", run_spec(), at=0)
    while True:
        events = await store.append("r1", [text("x"), text("y"), text("z")])
        print(events[-1].seq, flush=True)

anyio.run(main)
"""


def end(state: str = "succeeded", at: float = 9.0) -> Entry:
    return Entry(RunChanged(state=state), None, at)  # type: ignore[arg-type]


def write_until_killed(place: Place, events: int = 60) -> int:
    """Have another process write events to a run ``r1`` and kill it (-9); how many it knows were kept."""
    command = [sys.executable, "-c", _WRITER, place[0], str(place[1])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as writer:
        assert writer.stdout
        seen = 0
        while seen < events:
            seen = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        return max([seen, *map(int, writer.stdout.read().split())])


@pytest.mark.anyio
class StoreContract:
    """The suite. `reopen()` opens the same medium once more, as after a restart."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        raise NotImplementedError

    @pytest.fixture
    def reopen(self, place: Place) -> Callable[[], Awaitable[Store]]:
        return lambda: open_store(*place)

    async def spoil(self, place: Place, run: str) -> None:
        """Make the record of `run` unreadable; the store is closed."""
        raise NotImplementedError

    @pytest.fixture
    async def store(self, reopen: Callable[[], Awaitable[Store]]) -> AsyncIterator[Store]:
        store = await reopen()
        yield store
        await store.aclose()

    async def test_a_new_run_is_queued(self, store: Store) -> None:
        record = await store.create_run("r1", run_spec("a", "b"), at=5.0)
        assert (record.state, record.created_at, list(record.stages)) == ("queued", 5.0, ["a", "b"])
        assert await store.get_run("r1") == record
        assert await store.read_events("r1") == []

    async def test_numbers_have_no_gaps(self, store: Store) -> None:
        await store.create_run("r1", run_spec(), at=0)
        await store.create_run("r2", run_spec(), at=0)
        first = await store.append("r1", [text("a"), text("b")])
        await store.append("r2", [text("x")])
        second = await store.append("r1", [text("c")])
        assert [e.seq for e in first + second] == [1, 2, 3]
        assert await store.read_events("r1") == first + second
        assert [e.seq for e in await store.read_events("r2")] == [1]

    async def test_concurrent_writers_share_one_sequence(self, store: Store) -> None:
        await store.create_run("r1", run_spec(), at=0)

        async def write(n: int) -> None:
            for i in range(20):
                await store.append("r1", [text(f"{n}-{i}"), text(f"{n}-{i}'")])

        async with anyio.create_task_group() as tasks:
            for n in range(8):
                tasks.start_soon(write, n)
        events = await store.read_events("r1", limit=5000)
        assert [e.seq for e in events] == list(range(1, 321))
        for n in range(8):
            own = [e.body.text for e in events if e.body.text.startswith(f"{n}-")]  # type: ignore[union-attr]
            assert own == [f"{n}-{i}{t}" for i in range(20) for t in ("", "'")]

    async def test_reading_after_and_limit(self, store: Store) -> None:
        await store.create_run("r1", run_spec(), at=0)
        await store.append("r1", [text(str(i)) for i in range(10)])
        assert [e.seq for e in await store.read_events("r1", after=4, limit=3)] == [5, 6, 7]
        assert await store.read_events("r1", after=10) == []

    async def test_the_record_is_the_fold(self, store: Store) -> None:
        spec = run_spec("one", "two")
        await store.create_run("r1", spec, at=1)
        trouble = Trouble(kind="limit", message="too slow", cause="time")
        call = ModelCall(
            request="q", model="m", source="live", status=200, tokens=Tokens(input=3), cost_usd=0.5, duration_s=1
        )
        entries = [
            Entry(RunChanged(state="running"), None, 2),
            Entry(StageChanged(state="booting"), "one", 2),
            Entry(ToolCall(id="t", name="bash"), "one", 3),
            Entry(call, "one", 3),
            Entry(StageChanged(state="succeeded", output="42"), "one", 4),
            Entry(StageChanged(state="failed", trouble=trouble), "two", 5),
            Entry(RunChanged(state="failed", trouble=trouble), None, 6),
        ]
        for entry in entries:
            await store.append("r1", [entry])
        record = await store.get_run("r1")
        assert record == rebuild("r1", spec, await store.read_events("r1"), at=1)
        assert (record.state, record.finished_at, record.result) == ("failed", 6, "42")
        assert (record.stages["one"].tool_calls, record.stages["one"].cost_usd) == (1, 0.5)
        assert record.stages["two"].trouble == trouble

    async def test_has_ended(self, store: Store) -> None:
        await store.create_run("r1", run_spec(), at=0)
        await store.append("r1", [Entry(RunChanged(state="running"), None, 1), text("a")])
        assert not await store.has_ended("r1")
        await store.append("r1", [Entry(RunChanged(state="cancelled"), None, 2)])
        assert await store.has_ended("r1")

    async def test_listing(self, store: Store) -> None:
        for i in range(4):
            await store.create_run(f"r{i}", run_spec(), at=i)
        await store.append("r1", [Entry(RunChanged(state="succeeded"), None, 9)])
        assert [r.id for r in await store.list_runs()] == ["r3", "r2", "r1", "r0"]
        assert [r.id for r in await store.list_runs(limit=2)] == ["r3", "r2"]
        assert [r.id for r in await store.list_runs(unfinished=True)] == ["r3", "r2", "r0"]

    async def test_everything_is_there_after_a_restart(
        self, store: Store, reopen: Callable[[], Awaitable[Store]]
    ) -> None:
        await store.create_run("r1", run_spec(), at=0)
        events = await store.append("r1", [text("kept"), Entry(StageChanged(state="booting"), "one", 3)])
        record = await store.get_run("r1")
        await store.aclose()
        again = await reopen()
        try:
            assert await again.get_run("r1") == record
            assert await again.read_events("r1") == events
            more: list[Event] = await again.append("r1", [text("next")])
            assert [e.seq for e in more] == [3]
        finally:
            await again.aclose()

    async def test_an_unknown_run_is_the_users_error(self, store: Store) -> None:
        unknown = (
            store.get_run("no"),
            store.has_ended("no"),
            store.read_events("no"),
            store.append("no", [text("x")]),
            store.count_events("no"),
            store.delete_run("no"),
            store.delete_run("no", force=True),
            store.remember(KEY, "no", "one"),
            store.list_runs(before="no"),
        )
        for call in unknown:
            with pytest.raises(UserError, match="no run 'no'") as caught:
                await call
            assert caught.value.cause == "unknown-run"

    @pytest.mark.parametrize(
        "run", ["", ".", "..", "../r1", ".r1", "a/b", "a b", "a\0", "a\n", "\u00e4", "x" * 129]
    )
    async def test_what_is_no_run_id_is_refused(self, store: Store, run: str) -> None:
        with pytest.raises(UserError, match="not a run id"):
            await store.create_run(run, run_spec(), at=0)
        with pytest.raises(UserError, match="no run"):
            await store.get_run(run)

    async def test_an_id_is_used_once(self, store: Store) -> None:
        await store.create_run("r1", run_spec(), at=0)
        with pytest.raises(UserError, match="already"):
            await store.create_run("r1", run_spec(), at=0)

    async def test_append_is_all_or_nothing(self, store: Store) -> None:
        await store.create_run("r1", run_spec(), at=0)
        await store.append("r1", [text("a")])
        huge = Entry(ToolCall(id="t", name="n", input={"x": "y" * 600_000}), "one", 0)
        with pytest.raises(LimitExceeded):
            await store.append("r1", [text("b"), huge])
        assert [e.seq for e in await store.append("r1", [text("c")])] == [2]

    async def test_guest_text_of_any_kind_is_kept(self, store: Store) -> None:
        await store.create_run("r1", run_spec(), at=0)
        nasty = "\x00\x1b[2J'; DROP TABLE runs;-- \u2028 \U0001f600"
        await store.append("r1", [Entry(AgentLog(text=nasty), "one", 0)])
        body = (await store.read_events("r1"))[0].body
        assert isinstance(body, AgentLog)
        assert body.text == nasty

    async def test_closing_twice(self, store: Store) -> None:
        await store.aclose()
        await store.aclose()

    async def test_a_closed_store_says_so(self, store: Store) -> None:
        await store.create_run("r1", run_spec(), at=0)
        await store.aclose()
        for call in (store.get_run("r1"), store.append("r1", [text("x")]), store.list_runs(), store.recall(KEY)):
            with pytest.raises(ProviderError, match="closed") as caught:
                await call
            assert caught.value.cause == "store"

    async def test_a_run_at_its_bound_can_still_end(self, place: Place) -> None:
        store = await open_store(*place, max_events=3)
        await store.create_run("r1", run_spec(), at=0)
        await store.append("r1", [text("x")] * 3)
        with pytest.raises(LimitExceeded, match="3 events"):
            await store.append("r1", [text("x")])
        call = ModelCall(request="q", model="m", source="live", status=200, cost_usd=0.5, duration_s=1)
        assert [e.seq for e in await store.append("r1", [Entry(call, "one", 1), end("failed")])] == [4, 5]
        assert (await store.get_run("r1")).cost_usd == 0.5, "what was paid for is metered all the same"
        await store.aclose()

    async def test_a_record_that_cannot_be_read_is_its_runs_alone(
        self, place: Place, store: Store, reopen: Callable[[], Awaitable[Store]], caplog: pytest.LogCaptureFixture
    ) -> None:
        for run in ("good", "bad", "new"):
            await store.create_run(run, run_spec(), at=1)
            await store.append(run, [text("a")])
        await store.aclose()
        await self.spoil(place, "bad")
        again = await reopen()
        for call in (again.get_run("bad"), again.append("bad", [text("b")]), again.list_runs(strict=True)):
            with pytest.raises(ProviderError, match="bad") as caught:
                await call
            assert caught.value.cause == "store"
        assert [r.id for r in await again.list_runs()] == ["new", "good"]
        assert [r.id for r in await again.list_runs(unfinished=True, limit=3)] == ["new", "good"]
        assert "left out" in caplog.text
        assert "bad" in caplog.text
        assert (await again.append("good", [text("b")]))[0].seq == 2
        await again.delete_run("bad", force=True)
        assert [r.id for r in await again.list_runs(strict=True)] == ["new", "good"]
        await again.aclose()

    async def test_acknowledged_events_survive_kill_9(
        self, place: Place, reopen: Callable[[], Awaitable[Store]]
    ) -> None:
        """A writer is killed in the middle of writing: what it acknowledged is there, and only whole appends."""
        seen = await anyio.to_thread.run_sync(write_until_killed, place)
        store = await reopen()
        events = await store.read_events("r1", limit=5000)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert len(events) >= min(seen, 5000)
        assert await store.count_events("r1") % 3 == 0
        assert (await store.append("r1", [text("on")]))[0].seq == await store.count_events("r1")
        await store.aclose()

    async def test_paging_through_runs(self, store: Store) -> None:
        """Also where times are equal or out of order, and where a filter leaves out the run that marks it."""
        for run, at in [("a", 5), ("b", 5), ("c", 5), ("d", 1), ("e", 9.25), ("f", 5), ("g", 0.1)]:
            await store.create_run(run, run_spec(), at=at)
        await store.append("b", [end("failed")])
        await store.append("f", [end("failed")])
        await store.append("d", [Entry(RunChanged(state="running"), None, 1)])

        async def ids(**how: object) -> str:
            return "".join(r.id for r in await store.list_runs(**how))  # type: ignore[arg-type]

        assert await ids() == "efcbadg"
        pages, before = [], None
        while page := await store.list_runs(limit=2, before=before):
            pages.append("".join(r.id for r in page))
            before = page[-1].id
        assert pages == ["ef", "cb", "ad", "g"]
        assert await ids(state="failed") == "fb"
        assert await ids(state="failed", before="e") == "fb"
        assert await ids(state="failed", before="c") == "b"
        assert await ids(state="failed", before="d", limit=1) == ""
        assert await ids(state="queued", limit=2) == "ec"
        assert await ids(state="queued", unfinished=True, before="c") == "ag"
        assert await ids(state="failed", unfinished=True) == ""
        assert await ids(unfinished=True, before="f", limit=2) == "ca"
        assert await ids(state="running") == "d"
        assert await ids(state="no such state") == ""
        assert await ids(limit=0) == ""

    async def test_filters_hold_after_a_restart(
        self, store: Store, reopen: Callable[[], Awaitable[Store]]
    ) -> None:
        for run in "abc":
            await store.create_run(run, run_spec(), at=1)
        await store.append("b", [end("cancelled")])
        await store.aclose()
        again = await reopen()
        assert [r.id for r in await again.list_runs()] == ["c", "b", "a"]
        assert [r.id for r in await again.list_runs(state="cancelled")] == ["b"]
        assert [r.id for r in await again.list_runs(unfinished=True, before="c")] == ["a"]
        await again.create_run("d", run_spec(), at=1)
        assert [r.id for r in await again.list_runs(limit=2)] == ["d", "c"]
        await again.aclose()

    async def test_counting(self, store: Store) -> None:
        await store.create_run("r1", run_spec(), at=0)
        assert await store.count_events("r1") == 0
        await store.append("r1", [text("a")] * 700)
        await store.append("r1", [end()])
        assert await store.count_events("r1") == 701

    async def test_reading_far_into_a_run(self, store: Store, reopen: Callable[[], Awaitable[Store]]) -> None:
        """Each page is what belongs there, across batches of any size, before and after a restart."""
        await store.create_run("r1", run_spec(), at=0)
        written = 0
        for size in (1, 255, 256, 257, 3, 1000, 511):
            await store.append("r1", [text(str(written + i)) for i in range(size)])
            written += size

        async def check(store: Store) -> None:
            for after in (0, 1, 254, 255, 256, 257, 511, 512, 513, 1024, written - 1, written, written + 1):
                for limit in (1, 300, 700):
                    events = await store.read_events("r1", after=after, limit=limit)
                    assert [e.seq for e in events] == list(range(after + 1, min(written, after + limit) + 1))
                    assert [e.body.text for e in events] == [str(e.seq - 1) for e in events]  # type: ignore[union-attr]

        await check(store)
        await store.aclose()
        again = await reopen()
        await check(again)
        await again.aclose()

    async def test_events_after_the_end_are_metered(
        self, store: Store, reopen: Callable[[], Awaitable[Store]]
    ) -> None:
        """A model call that ends after its run did is still in the record, also after a restart."""
        await store.create_run("r1", run_spec(), at=0)
        await store.append("r1", [end("cancelled")])
        call = ModelCall(request="q", model="m", source="live", status=200, cost_usd=0.5, duration_s=1)
        await store.append("r1", [Entry(call, "one", 10)])
        assert (await store.get_run("r1")).cost_usd == 0.5
        await store.append("r1", [text("late")])
        await store.aclose()
        again = await reopen()
        record = await again.get_run("r1")
        assert (record.cost_usd, record.state, await again.count_events("r1")) == (0.5, "cancelled", 3)
        await again.aclose()

    async def test_deleting(self, store: Store, reopen: Callable[[], Awaitable[Store]]) -> None:
        for run in ("r1", "r2", "r3"):
            await store.create_run(run, run_spec(), at=0)
            await store.append(run, [text(run)] * 300)
        with pytest.raises(UserError, match="not ended") as caught:
            await store.delete_run("r1")
        assert caught.value.cause == "run-not-ended"
        assert await store.count_events("r1") == 300
        await store.append("r1", [end()])
        await store.delete_run("r1")
        await store.delete_run("r2", force=True)

        async def check(store: Store) -> None:
            assert [r.id for r in await store.list_runs()] == ["r3"]
            assert await store.list_runs(state="succeeded") == []
            assert [r.id for r in await store.list_runs(unfinished=True)] == ["r3"]
            assert await store.count_events("r3") == 300
            for call in (store.get_run("r1"), store.read_events("r1"), store.append("r2", [text("x")])):
                with pytest.raises(UserError, match="no run"):
                    await call

        await check(store)
        await store.aclose()
        again = await reopen()
        await check(again)
        await again.aclose()

    async def test_an_id_is_free_after_deletion(self, store: Store) -> None:
        """And nothing of the run that had it shows."""
        await store.create_run("r1", run_spec("old"), at=0)
        await store.append("r1", [text("old", "old")] * 10)
        await store.remember(KEY, "r1", "old")
        await store.delete_run("r1", force=True)
        await store.create_run("r1", run_spec("new"), at=1)
        assert await store.read_events("r1") == []
        assert list((await store.get_run("r1")).stages) == ["new"]
        assert await store.recall(KEY) is None
        assert (await store.append("r1", [text("new", "new")]))[0].seq == 1

    async def test_the_stage_cache(self, store: Store, reopen: Callable[[], Awaitable[Store]]) -> None:
        for run in ("r1", "r2"):
            await store.create_run(run, run_spec("one", "two"), at=0)
            await store.append(run, [end()])
        assert await store.recall(KEY) is None
        await store.remember(KEY, "r1", "one")
        await store.remember(OTHER, "r1", "two")
        await store.remember(KEY, "r2", "two")
        assert (await store.recall(KEY), await store.recall(OTHER)) == (("r2", "two"), ("r1", "two"))
        await store.delete_run("r1")
        await store.aclose()
        again = await reopen()
        assert (await again.recall(KEY), await again.recall(OTHER)) == (("r2", "two"), None)
        await again.delete_run("r2")
        assert await again.recall(KEY) is None
        await again.aclose()

    @pytest.mark.parametrize("key", ["", "sha256:", "sha256:" + "G" * 64, "x" * 71])
    async def test_a_cache_key_is_a_digest(self, store: Store, key: str) -> None:
        await store.create_run("r1", run_spec(), at=0)
        with pytest.raises(UserError, match="stage cache"):
            await store.remember(key, "r1", "one")
        with pytest.raises(UserError, match="stage cache"):
            await store.recall(key)
