"""Sends the spans, metrics and logs of runs to a collector, as their events are recorded.

Nothing here holds a run: events are taken without waiting, into bounded queues, and what a dead or slow collector
leaves no room for is dropped. Not for OpenTelemetry itself: see `sink`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint

from voidbox_lab.errors import VoidboxError
from voidbox_lab.observe.destinations import Destinations
from voidbox_lab.observe.loglines import log_lines
from voidbox_lab.observe.sink import Sink
from voidbox_lab.observe.spans import SpanFold
from voidbox_lab.spec.events import AgentText, Event, FileKept, Mounted, Queued
from voidbox_lab.store import Store, is_vital

MAX_WAITING = 4096
"""Events that may wait to be looked at; beyond it only changes of state and model calls are taken."""
MAX_REPLAY = 200_000
"""Events of a run that are read again to know what was open in it when its daemon died."""
MAX_OVER = 64
"""Runs that have ended and of which late news, such as a last model call, is still understood."""
PAGE = 1000
DRAIN_S = 2.0
"""For what waits when the daemon ends; beyond it, the sink has its own bound."""
_OF_NO_USE = (AgentText, FileKept, Mounted, Queued)

log = logging.getLogger(__name__)


class Exporter:
    """Takes events from the journal. Made by `exporting`."""

    def __init__(self, to: Destinations, store: Store, sink: Sink) -> None:
        self._contents, self._store, self._sink = to.contents, store, sink
        self._waiting: deque[Event] = deque()
        self._news = anyio.Event()
        self._folds: dict[str, SpanFold] = {}
        self._over: OrderedDict[str, SpanFold] = OrderedDict()
        self._dropped = 0

    def recorded(self, run: str, events: Sequence[Event]) -> None:
        """Take events of `run`, as they were recorded; never waits and never fails."""
        for event in events:
            if isinstance(event.body, _OF_NO_USE):
                continue
            if len(self._waiting) >= MAX_WAITING and not is_vital(event.body):
                self._dropped += 1
                continue
            self._waiting.append(event)
        self._news.set()

    async def serve(self) -> None:
        """Turn what was taken into spans, metrics and logs, until cancelled."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            await self.drain()

    async def drain(self) -> None:
        """Until nothing waits."""
        while self._waiting:
            await self._take(self._waiting.popleft())
            await checkpoint()  # a burst must not keep the daemon from its clients
        if self._dropped:
            log.warning("%d events were not exported: too many came at once", self._dropped)
            self._dropped = 0

    async def _take(self, event: Event) -> None:
        try:
            fold = self._folds.get(event.run) or self._over.get(event.run) or await self._begin(event)
            for line in log_lines(event, contents=self._contents):
                self._sink.log(line, event.at, fold.trace_id, fold.context(event.stage))
            self._sink.metrics.event(event)
            for span in fold.feed(event):
                self._sink.span(span)
                self._sink.metrics.span(span)
            if fold.over and self._folds.pop(event.run, None) is not None:
                self._over[event.run] = fold
                while len(self._over) > MAX_OVER:
                    self._over.popitem(last=False)
        except VoidboxError as error:
            log.info("an event of %s is not exported: %s", event.run, error)
        except Exception:
            log.exception("an event of %s is not exported", event.run)

    async def _begin(self, event: Event) -> SpanFold:
        """The fold of a run whose first event here this is, as it was before it."""
        fold = SpanFold(await self._store.get_run(event.run), contents=self._contents)
        if 1 < event.seq <= MAX_REPLAY:
            after = 0
            while after < event.seq - 1:
                page = await self._store.read_events(
                    event.run, after=after, limit=min(PAGE, event.seq - 1 - after)
                )
                if not page:
                    break
                for old in page:
                    fold.feed(old)  # what had ended then was sent then
                after = page[-1].seq
        self._folds[event.run] = fold
        return fold


@asynccontextmanager
async def exporting(to: Destinations, store: Store) -> AsyncIterator[Exporter]:
    """An exporter for the time of the context; at its end, what is left is sent, within a bound."""
    sink = await anyio.to_thread.run_sync(Sink, to)  # imports for half a second
    exporter = Exporter(to, store, sink)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exporter.serve)
            yield exporter
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(DRAIN_S):
                await exporter.drain()
            await sink.aclose()
