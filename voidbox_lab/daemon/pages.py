"""A run's events as bytes of an event stream, made once for all who follow it. Not for when: see `routes.runs`.

What fifty readers of one run share is nearly all of the work: reading, checking and encoding events. It is kept
while somebody follows the run, and no longer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import anyio

from voidbox_lab.daemon.streams import one_line
from voidbox_lab.spec import TERMINAL
from voidbox_lab.spec.events import Event, RunChanged
from voidbox_lab.store import Store

CHUNK = 256 * 1024
"""Bytes that are sent at once, but for the last event among them."""
KEPT_BYTES = 4 << 20
"""Of a run's encoded pages; readers that are further apart read for themselves."""
NOTHING_S = 1.0
"""How long it is believed that there is nothing after an event as long as nobody says otherwise."""


@dataclass(frozen=True)
class Page:
    """Some events that follow each other."""

    chunks: tuple[bytes, ...]
    """As server-sent events, whole ones in each."""
    last: int
    """The number of the last event."""
    ends: bool
    """Whether that is the end of the run."""
    more: bool
    """Whether more may be there already."""


class RunPages:
    """The pages of one run."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._lock = anyio.Lock()
        self._pages: OrderedDict[int, Page] = OrderedDict()
        self._bytes = 0
        self._nothing: tuple[int, anyio.Event] | None = None
        self._until = 0.0

    async def after(self, seq: int, news: anyio.Event, limit: int) -> Page | None:
        """At most `limit` events after number `seq`; None if there are none.

        Args:
            news: from `Journal.news` before this was called; while it is not set, there is nothing new.
        """
        async with self._lock:
            if page := self._pages.get(seq):
                return page
            if self._nothing == (seq, news) and not news.is_set() and anyio.current_time() < self._until:
                return None
            events = await self._store.read_events(self._run, after=seq, limit=limit)
            if not events:
                self._nothing, self._until = (seq, news), anyio.current_time() + NOTHING_S
                return None
            page = _page(events, limit)
            # It may have become short by the time somebody else asks for it.
            self._keep(seq, replace(page, more=True))
            return page

    async def alone(self, seq: int, limit: int) -> Page | None:
        """As `after`, for one reader and not kept."""
        events = await self._store.read_events(self._run, after=seq, limit=limit)
        return _page(events, limit) if events else None

    def _keep(self, seq: int, page: Page) -> None:
        self._pages[seq] = page
        self._bytes += sum(map(len, page.chunks))
        while self._bytes > KEPT_BYTES:
            _, gone = self._pages.popitem(last=False)
            self._bytes -= sum(map(len, gone.chunks))


class Pages:
    """Those of all runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Weak: who follows a run holds its pages.
        self._runs: WeakValueDictionary[str, RunPages] = WeakValueDictionary()

    def of(self, run: str) -> RunPages:
        """The pages of `run`, to be held by who follows it."""
        found = self._runs.get(run)
        if found is None:
            found = self._runs[run] = RunPages(self._store, run)
        return found


def encoded(event: Event) -> bytes:
    """`event` as one of an event stream."""
    return f"id: {event.seq}\nevent: event\ndata: {one_line(event)}\n\n".encode("ascii")


def _page(events: Sequence[Event], limit: int) -> Page:
    """A page of `events`, up to the run's end: what is metered after it is not followed."""
    chunks, chunk, ends, seq = [], bytearray(), False, 0
    for event in events:
        chunk += encoded(event)
        if len(chunk) >= CHUNK:
            chunks.append(bytes(chunk))
            chunk.clear()
        seq, ends = event.seq, isinstance(event.body, RunChanged) and event.body.state in TERMINAL
        if ends:
            break
    return Page(tuple([*chunks, bytes(chunk)] if chunk else chunks), seq, ends, more=len(events) == limit)
