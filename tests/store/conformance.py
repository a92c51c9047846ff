"""What every `Store` must do. A backend's test module subclasses `StoreContract` and gives `reopen`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest

from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.spec import Model, RunSpec, Stage, Tokens, Trouble, VoidBoxSpec
from voidbox_lab.spec.events import AgentLog, AgentText, Event, ModelCall, RunChanged, StageChanged, ToolCall
from voidbox_lab.store import Entry, Store, rebuild


def run_spec(*names: str) -> RunSpec:
    """A chain of stages."""
    boxes = [VoidBoxSpec(name=n, prompt="hello", model=Model.parse("scripted:x")) for n in names or ("one",)]
    return RunSpec(stages=tuple(Stage(box=b, needs=(p.name,) if p else ()) for p, b in zip([None, *boxes], boxes)))  # noqa: B905


def text(value: str, stage: str = "one", at: float = 1.0) -> Entry:
    return Entry(AgentText(text=value), stage, at)


@pytest.mark.anyio
class StoreContract:
    """The suite. `reopen()` opens the same medium once more, as after a restart."""

    @pytest.fixture
    def reopen(self) -> Callable[[], Awaitable[Store]]:
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
        )
        for call in unknown:
            with pytest.raises(UserError, match="no run 'no'"):
                await call

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
