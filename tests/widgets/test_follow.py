"""Following a run: whatever ends it, the surface is closed, and the run of a stopped cell is cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import anyio
import pytest

from voidbox_lab.errors import Cancelled, ProviderError
from voidbox_lab.spec.events import Event
from voidbox_lab.spec.model import Model
from voidbox_lab.spec.run import RunRecord, RunSpec, Stage, StageRecord, VoidBoxSpec
from voidbox_lab.widgets import follow as following
from voidbox_lab.widgets.display import QuietSurface
from voidbox_lab.widgets.follow import follow
from voidbox_lab.widgets.view_state import ViewState

BOX = VoidBoxSpec(name="one", prompt="p", model=Model.parse("scripted:quickstart"))
RECORD = RunRecord(
    id="r1",
    spec=RunSpec(stages=(Stage(box=BOX),)),
    created_at=time.time(),
    stages={"one": StageRecord(name="one")},
)


class SlowDaemon:
    """Takes `delay_s` to take a cancellation; the run has no events, and ends once it was cancelled."""

    def __init__(self, delay_s: float, error: Exception | None = None) -> None:
        self.delay_s, self.error = delay_s, error
        self.over = asyncio.Event()

    async def events(self, run_id: str, after: int = 0) -> AsyncIterator[Event]:
        if self.error is not None:
            raise self.error
        await self.over.wait()
        for event in ():
            yield event

    async def cancel(self, run_id: str) -> None:
        await anyio.sleep(self.delay_s)
        self.over.set()

    async def run(self, run_id: str) -> RunRecord:
        return RECORD.model_copy(update={"state": "cancelled", "finished_at": time.time()})


class Closing(QuietSurface):
    """Remembers what it was closed with."""

    def __init__(self) -> None:
        self.closed: list[ViewState] = []

    def close(self, state: ViewState) -> None:
        self.closed.append(state)


async def pressed(times: int, daemon: SlowDaemon, surface: Closing) -> asyncio.Task[RunRecord]:
    """A cell whose stop button was pressed so often, after its end."""
    cell = asyncio.create_task(follow(daemon, RECORD, surface))
    for _ in range(times):
        await asyncio.sleep(0.05)
        cell.cancel()
    await asyncio.wait([cell], timeout=5)
    return cell


@pytest.mark.anyio
@pytest.mark.parametrize("times", [1, 2, 4])
async def test_stop_may_be_pressed_again(times: int) -> None:
    """The cancellation reaches the daemon all the same, and the view freezes in the run's last state, once."""
    daemon, surface = SlowDaemon(0.4), Closing()
    cell = await pressed(times, daemon, surface)
    with pytest.raises(Cancelled, match="cancelled from this cell"):
        cell.result()
    assert daemon.over.is_set()
    assert [state.state for state in surface.closed] == ["cancelled"]
    assert cell.cancelling() == 0


@pytest.mark.anyio
async def test_a_daemon_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressing again neither ends the wait nor starts it anew."""
    monkeypatch.setattr(following, "STOP_S", 0.3)
    surface, started = Closing(), time.monotonic()
    cell = await pressed(4, SlowDaemon(60), surface)
    with pytest.raises(Cancelled):
        cell.result()
    assert time.monotonic() - started < 2
    (state,) = surface.closed
    assert state.trouble is not None
    assert "ends by itself" in state.trouble.message


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ProviderError("Lost.", cause="daemon-lost"), RuntimeError("a bug")])
async def test_any_error_closes_the_surface(error: Exception) -> None:
    """Ours comes out as it is; a bug comes out as the group it is in."""
    surface = Closing()
    with pytest.raises((ProviderError, ExceptionGroup)):
        await follow(SlowDaemon(0, error), RECORD, surface)
    assert len(surface.closed) == 1
