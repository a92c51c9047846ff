"""Events on their way to the store: batched, in order, and announced to whoever reads along.

Text comes token by token; writing each token alone would cost more than producing it. So events wait
up to `FLUSH_S` and go in one transaction, with neighbouring text joined. A change of state does not
wait. Not for reading: a reader takes events from the store and learns from `news` when to look again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

import anyio

from voidbox_lab.errors import LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.spec.events import MAX_TEXT, AgentText, Body
from voidbox_lab.store import Entry, Store

FLUSH_S = 0.05
MAX_PENDING = 5000
"""Events that may wait before whoever emits them has to."""

log = logging.getLogger(__name__)


class Journal:
    """One per daemon. `serve` must run while events are emitted."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._pending: list[tuple[str, Entry]] = []
        self._wake = anyio.Event()
        self._lock = anyio.Lock()
        # Weak: who waits keeps it, so nothing stays of a run that is over and that nobody reads any more.
        self._news: WeakValueDictionary[str, anyio.Event] = WeakValueDictionary()

    async def emit(self, run: str, stage: str | None, body: Body) -> None:
        """Take an event; it is written within `FLUSH_S`. Waits when too many are pending.

        Raises:
            ProviderError, LimitExceeded: the backlog cannot be written.
        """
        self.post(run, stage, body)
        if len(self._pending) >= MAX_PENDING:
            await self.flush()

    def post(self, run: str, stage: str | None, body: Body) -> None:
        """`emit` for callers that cannot wait; only for what is bounded elsewhere."""
        self._pending.append((run, Entry(body, stage, self._clock())))
        self._wake.set()

    async def record(self, run: str, stage: str | None, body: Body) -> None:
        """Write an event, and all before it, now; durable when this returns."""
        self.post(run, stage, body)
        await self.flush()

    async def flush(self) -> None:
        """Write what is pending. What the medium refuses stays pending; what is out of bounds is dropped."""
        async with self._lock:
            # One batch: what arrives meanwhile is for the next flush, or every token would get its own write.
            batch, self._pending = self._pending, []
            runs: dict[str, list[Entry]] = {}
            for run, entry in batch:
                runs.setdefault(run, []).append(entry)
            try:
                while runs:
                    run = next(iter(runs))
                    await self._append(run, runs[run])
                    del runs[run]
            finally:
                # Cancelled or refused: back in front, in order.
                self._pending[:0] = [(run, entry) for run, entries in runs.items() for entry in entries]

    def news(self, run: str) -> anyio.Event:
        """Set when `run` has got new events. Take it *before* reading the store, so that none is missed."""
        return self._news.setdefault(run, anyio.Event())

    async def serve(self) -> None:
        """Write pending events every `FLUSH_S` until cancelled."""
        while True:
            await self._wake.wait()
            await anyio.sleep(FLUSH_S)
            self._wake = anyio.Event()
            try:
                await self.flush()
            except ProviderError as e:
                log.error("events cannot be written, %d wait: %s", len(self._pending), e)
                self._wake.set()
                await anyio.sleep(1)
            except VoidboxError as e:
                log.warning("events were dropped: %s", e)

    async def _append(self, run: str, entries: list[Entry]) -> None:
        # Shielded: half-known writes would be written twice.
        with anyio.CancelScope(shield=True):
            try:
                await self._store.append(run, joined(entries))
            except (LimitExceeded, UserError):
                # One event too large, or the run is full: lose only what is out of bounds.
                await self._append_singly(run, entries)
        if news := self._news.pop(run, None):
            news.set()

    async def _append_singly(self, run: str, entries: list[Entry]) -> None:
        refused: VoidboxError | None = None
        for entry in entries:
            try:
                await self._store.append(run, [entry])
            except (LimitExceeded, UserError) as e:
                refused = e
        if refused is not None:
            log.warning("events of %s were dropped: %s", run, refused)


def joined(entries: list[Entry]) -> list[Entry]:
    """`entries` with neighbouring pieces of the same text block of a stage put together, up to `MAX_TEXT`."""
    out: list[Entry] = []
    for entry in entries:
        body, last = entry.body, out[-1] if out else None
        if (
            isinstance(body, AgentText)
            and last is not None
            and isinstance(last.body, AgentText)
            and (last.stage, last.body.block) == (entry.stage, body.block)
            and len(last.body.text) + len(body.text) <= MAX_TEXT
        ):
            out[-1] = Entry(AgentText(text=last.body.text + body.text, block=body.block), last.stage, last.at)
        else:
            out.append(entry)
    return out
