"""Follows a run from its first event to its end and keeps a surface up to date.

The awaiting side of a cell: its cancellation (the stop button, Ctrl-C) cancels the run. Whether a run
that did not succeed is an error is for the caller to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Protocol

import anyio

from voidbox_lab.api import persistently
from voidbox_lab.errors import Cancelled, VoidboxError
from voidbox_lab.spec.events import Event
from voidbox_lab.spec.run import RunRecord
from voidbox_lab.spec.validate import validated
from voidbox_lab.widgets.display import Action, Surface
from voidbox_lab.widgets.pages import Asked, page
from voidbox_lab.widgets.view_state import ViewState, begin, fold, interrupted, noted, settle

PAGE_S = 20
"""How long a page of what the view left out may take."""
STOP_S = 1.5
"""How long a stopped cell waits for the run's own end before it freezes the view without it."""


class Client(Protocol):
    """What following needs of `voidbox_lab.client.AsyncClient`."""

    def events(self, run_id: str, after: int = 0, *, follow: bool = True) -> AsyncIterator[Event]:
        """All events after number `after`, until the run has ended; without `follow` those that there are."""

    async def cancel(self, run_id: str) -> object:
        """Ask for the run's end."""

    async def pause(self, run_id: str) -> object:
        """Have it start nothing more."""

    async def resume(self, run_id: str) -> object:
        """Let it go on."""

    async def run(self, run_id: str) -> RunRecord:
        """The run's record now."""


async def follow(client: Client, record: RunRecord, surface: Surface, *, owner: bool = True) -> RunRecord:
    """Show the run `record` on `surface` until it ends; returns its final record.

    The `owner` of a run takes it along when its cell is stopped; a mere onlooker only stops looking.

    Raises:
        Cancelled: this coroutine was cancelled, and so was the run if this was its owner.
        VoidboxError: the daemon was lost; what was seen stays shown.
    """
    tracker = _Tracker(client, record, surface)
    surface.open(tracker.state)
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        final = await tracker.to_the_end()
        tracker.state = settle(tracker.state, final)
        return final
    except asyncio.CancelledError:
        if not owner:
            raise Cancelled(f"Stopped watching the run {record.id}, which goes on.", cause="detached") from None
        await tracker.stop()
        raise Cancelled(f"The run {record.id} was cancelled from this cell.", cause="interrupted") from None
    finally:
        # The requests to stop are answered by `Cancelled`, however many came.
        while task is not None and task.cancelling() > before:
            task.uncancel()
        surface.close(tracker.state)


class _Tracker:
    def __init__(self, client: Client, record: RunRecord, surface: Surface) -> None:
        self.client, self.run, self.surface = client, record.id, surface
        self.state: ViewState = begin(record)

    async def to_the_end(self) -> RunRecord:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self.surface.pump, self)
                await self._watch()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as group_error:
            # One of our errors says it best; a bug of ours must not hide behind it.
            ours, others = group_error.split(VoidboxError)
            if others is not None or ours is None:
                raise
            raise _first(ours) from None
        return await self.client.run(self.run)

    async def _watch(self) -> None:
        async for event in self.client.events(self.run, after=self.state.last_seq):
            self.state = fold(self.state, event)
            self.surface.show(self.state)

    async def act(self, action: Action) -> None:
        """See `voidbox_lab.widgets.display.Controls`."""
        try:
            await getattr(self.client, action)(self.run)
        except VoidboxError as e:
            self.state = noted(self.state, e.message)
            self.surface.show(self.state)

    async def more(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `voidbox_lab.widgets.display.Controls`."""
        try:
            asked = validated(Asked, **{k: v for k, v in request.items() if k in Asked.model_fields})
            stage = self.state.stages.get(asked.stage)
            events = self.client.events(self.run, after=asked.seq - 1, follow=False)
            with anyio.fail_after(PAGE_S):
                return await page(events, asked, command=stage is not None and stage.command)
        except VoidboxError as e:
            return {"error": e.message}
        except TimeoutError:
            return {"error": f"The store did not give this page within {PAGE_S} s; try again."}

    async def stop(self) -> None:
        """Cancel the run and wait for its end, `STOP_S` at most, however often stop is pressed."""
        with suppress(VoidboxError, TimeoutError):
            self.state = settle(self.state, await persistently(self._stopped(), STOP_S))
            return
        message = f"The run {self.run} was asked to stop and had not ended after {STOP_S} s; it ends by itself."
        self.state = interrupted(self.state, message, time.time())

    async def _stopped(self) -> RunRecord:
        await self.client.cancel(self.run)
        await self._watch()
        return await self.client.run(self.run)


def _first(group: BaseExceptionGroup[VoidboxError]) -> VoidboxError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, VoidboxError)
    return error
