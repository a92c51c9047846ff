"""What a view leaves out can be read from the store, a page at a time, and nothing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.widgets.test_view_state import played, record
from voidbox_lab.errors import UserError
from voidbox_lab.spec.events import AgentLog, AgentText, Body, Event, ToolCall, ToolResult
from voidbox_lab.spec.run import RunRecord
from voidbox_lab.widgets import pages
from voidbox_lab.widgets.display import Controls
from voidbox_lab.widgets.follow import _Tracker
from voidbox_lab.widgets.present import present
from voidbox_lab.widgets.view_state import ViewState, begin

pytestmark = pytest.mark.anyio


class Store:
    """The client of a run whose events are known."""

    def __init__(self, bodies: list[Body]) -> None:
        self.kept = [
            Event(seq=n, run="r1", at=100.0 + n, stage="analyst", body=b) for n, b in enumerate(bodies, 1)
        ]
        self.asked: list[str] = []

    async def events(self, run_id: str, after: int = 0, *, follow: bool = True) -> AsyncIterator[Event]:
        assert not follow, "a page would wait for what is to come"
        for event in self.kept[after:]:
            yield event

    async def act(self, action: str, run_id: str) -> None:
        self.asked.append(action)
        if action == "resume":
            raise UserError("The run r1 has ended.")

    async def cancel(self, run_id: str) -> None:
        await self.act("cancel", run_id)

    async def pause(self, run_id: str) -> None:
        await self.act("pause", run_id)

    async def resume(self, run_id: str) -> None:
        await self.act("resume", run_id)

    async def run(self, run_id: str) -> RunRecord:
        return record()


class Screen:
    """A surface that remembers."""

    def __init__(self) -> None:
        self.state: ViewState | None = None

    def open(self, state: ViewState) -> None: ...

    def show(self, state: ViewState) -> None:
        self.state = state

    def close(self, state: ViewState) -> None: ...

    async def pump(self, controls: Controls) -> None: ...


def looked_at(bodies: list[Body]) -> tuple[_Tracker, dict[str, Any]]:
    """A view of these events, and what it shows of the stage."""
    tracker = _Tracker(Store(bodies), record(), Screen())
    tracker.state = played(bodies)
    (stage,) = present(tracker.state, 500.0)["stages"]
    return tracker, stage


async def all_pages(tracker: _Tracker, missing: dict[str, Any]) -> list[dict[str, Any]]:
    """As the browser asks, until nothing is missing."""
    found: list[dict[str, Any]] = []
    left, place = missing["count"], {**missing["at"], "stage": "analyst"}
    while left > 0:
        page = await tracker.more({**place, "most": left, "kind": "more", "ticket": 1})
        assert page.get("count"), page
        found.append(page)
        left -= page["count"]
        place |= page["next"]
    assert left == 0
    return found


async def test_entries_left_out_are_read_in_order() -> None:
    """With head and tail they are all there were, results with their calls."""
    bodies: list[Body] = []
    for i in range(100):
        bodies += [
            AgentText(text=f"step **{i}**", block=i),
            ToolCall(id=f"t{i}", name="bash", input={"command": f"{i}"}),
        ]
        bodies += [ToolResult(id=f"t{i}", content=f"result {i}")]
    tracker, stage = looked_at(bodies)
    read = [entry for page in await all_pages(tracker, stage["gap"]) for entry in page["entries"]]
    shown = stage["entries"]
    first = stage["gap"]["from"]
    whole = [*shown[:first], *read, *shown[first:]]
    said = ["".join(e["blocks"]) if e["kind"] == "text" else f"{e['summary']} {e['text']}" for e in whole]
    expected = [t for i in range(100) for t in (f"<p>step <strong>{i}</strong></p>", f"{i} result {i}")]
    assert said == expected
    assert {e["status"] for e in whole if e["kind"] == "tool"} == {"done"}


@pytest.mark.parametrize("kind", ["log", "text", "tool"])
async def test_a_long_text_is_read_to_its_tail(kind: str) -> None:
    """Whatever the sizes of the events it came in; not a character twice."""
    whole = "".join(f"line {i} of a hundred thousand\n" for i in range(4000))
    pieces = [whole[i : i + 777] for i in range(0, len(whole), 777)]
    match kind:
        case "log":
            bodies: list[Body] = [AgentLog(text=line) for line in whole.splitlines()]
        case "text":
            bodies = [AgentText(text=piece) for piece in pieces]
        case _:
            bodies = [ToolCall(id="t", name="bash"), ToolResult(id="t", content=whole[:65_000])]
            whole = whole[:65_000]
    bodies.insert(len(bodies) // 2, ToolResult(id="nobody", content="in between"))
    tracker, stage = looked_at(bodies)
    entry = stage["entries"][-1]
    read = await all_pages(tracker, entry["cut"])
    (kept,) = tracker.state.stages["analyst"].entries
    assert kept.text.first + "".join(page["text"] for page in read) + kept.text.last == whole
    assert all(("blocks" in page) == (kind == "text") for page in read)
    assert max(len(page["text"]) for page in read) <= pages.MAX_CHARACTERS


async def test_a_page_does_not_read_the_whole_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others said very much, it ends, and the next goes on there."""
    monkeypatch.setattr(pages, "MAX_READ", 10)
    tracker, _ = looked_at([AgentText(text="a")])
    store = tracker.client
    assert isinstance(store, Store)
    others = [Event(seq=n, run="r1", at=1.0, stage="other", body=AgentText(text="x")) for n in range(2, 40)]
    store.kept += [*others, Event(seq=40, run="r1", at=1.0, stage="analyst", body=AgentText(text="b", block=1))]
    request: dict[str, Any] = {"stage": "analyst", "of": "entries", "seq": 2, "until": 40}
    counts = []
    for _ in range(10):
        page = await tracker.more(request)
        counts.append(page["count"])
        if page["count"]:
            break
        request |= page["next"]
    assert counts == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"stage": "analyst", "of": "entries", "seq": -1, "until": 5},
        {"stage": 5, "of": "x", "seq": 1, "until": 1},
    ],
)
async def test_a_request_that_makes_no_sense_is_a_sentence(request_: dict[str, Any]) -> None:
    """Whoever sent it."""
    tracker, _ = looked_at([AgentText(text="a")])
    assert set(await tracker.more(request_)) == {"error"}


async def test_buttons_reach_the_daemon_and_its_refusal_the_view() -> None:
    """A refusal does not end the following."""
    tracker, _ = looked_at([AgentText(text="a")])
    for action in ("pause", "resume", "cancel"):
        await tracker.act(action)  # type: ignore[arg-type]
    assert tracker.client.asked == ["pause", "resume", "cancel"]  # type: ignore[attr-defined]
    assert tracker.state.notices == ("The run r1 has ended.",)
    assert tracker.surface.state is tracker.state  # type: ignore[attr-defined]


def test_buttons_fit_the_state() -> None:
    """What is paused can be resumed; what has ended has none, and says what can be done."""
    state = begin(record())

    def shown(at: str) -> tuple[list[str], str]:
        view = present(state.__class__(**{**vars(state), "state": at}), 200.0)
        return [action["name"] for action in view["actions"]], view["again"]

    assert shown("running") == (["pause", "cancel"], "")
    assert shown("paused") == (["resume", "cancel"], "")
    assert shown("succeeded") == ([], "")
    assert shown("failed")[1].startswith("%voidbox retry r1 ")
    assert shown("interrupted")[1].startswith("%voidbox resume r1 ")
