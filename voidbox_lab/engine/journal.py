"""Events on their way to the store: batched, in order, and announced to whoever reads along.

Text comes token by token; writing each token alone would cost more than producing it. So events wait
up to `FLUSH_S` and go in one transaction, with neighbouring text joined. A change of state does not
wait. Not for reading: a reader takes events from the store and learns from `news` when to look again.

Runs do not wait for each other: what the medium refuses of one stays pending, in order, and is tried again.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import anyio

from voidbox_lab.errors import LimitExceeded, UserError, VoidboxError
from voidbox_lab.spec.events import MAX_TEXT, AgentText, Body, Event
from voidbox_lab.store import Entry, Store, is_vital
from voidbox_lab.store.codec import body_text

FLUSH_S = 0.05
RETRY_S = 1.0, 30.0
"""Seconds until `serve` tries a run again that could not be written: at first, and at most."""
MAX_PENDING = 5000
"""Events of a run that may wait before whoever emits them has to."""
MAX_CUT = 16 * 1024
"""Characters that are left of a text in a change of state that is too large for an event; as JSON a character
is 6 bytes at most, and there are few texts."""
_SURROGATES = re.compile("[\ud800-\udfff]")

Recorded = Callable[[str, Sequence[Event]], None]
"""Takes a run and events of it."""

log = logging.getLogger(__name__)


class Journal:
    """One per daemon. `serve` must run while events are emitted.

    Args:
        recorded: each is told of a run's events once they are written, in order; must not wait.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time.time,
        recorded: Sequence[Recorded] = (),
    ) -> None:
        self._store, self._clock, self._recorded = store, clock, recorded
        self._pending: dict[str, list[Entry]] = {}
        self._failing: dict[str, tuple[float, float]] = {}
        """Runs that could not be written: when to try again (`anyio.current_time`), and the wait after that."""
        self._lossy: set[str] = set()
        """Those of them that have lost events, which is said once."""
        self._full: set[str] = set()
        """Runs at the store's bound, which takes only what `is_vital`."""
        self._wake = anyio.Event()
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        # Weak: who waits keeps it, so nothing stays of a run that is over and that nobody reads any more.
        self._news: WeakValueDictionary[str, anyio.Event] = WeakValueDictionary()

    async def emit(self, run: str, stage: str | None, body: Body) -> None:
        """Take an event; it is written within `FLUSH_S`. Waits when too many of the run are pending.

        Raises:
            ProviderError: the run's backlog cannot be written.
        """
        self.post(run, stage, body)
        if len(self._pending.get(run, ())) >= MAX_PENDING:
            await self.flush(run)

    def post(self, run: str, stage: str | None, body: Body) -> None:
        """`emit` for callers that cannot wait; only for what is bounded elsewhere.

        Of a run that cannot be written, no more than `MAX_PENDING` are held, except of what `is_vital`.
        """
        waiting = self._pending.setdefault(run, [])
        if run in self._failing and len(waiting) >= MAX_PENDING and not is_vital(body):
            self._lost(run)
            return
        waiting.append(Entry(body, stage, self._clock()))
        self._wake.set()

    async def record(self, run: str, stage: str | None, body: Body) -> None:
        """Write an event, and all of the run before it, now; durable when this returns."""
        self.post(run, stage, body)
        await self.flush(run)

    async def flush(self, run: str | None = None) -> None:
        """Write what is pending of `run`, or of all. What is out of bounds is dropped.

        Raises:
            ProviderError: the medium refuses; it stays pending. Without `run` the first such error, after all
                runs have been tried.
        """
        if run is not None:
            await self._flush(run)
        elif error := await self._flush_all(list(self._pending)):
            raise error

    def news(self, run: str) -> anyio.Event:
        """Set when `run` has got new events. Take it *before* reading the store, so that none is missed."""
        return self._news.setdefault(run, anyio.Event())

    async def serve(self) -> None:
        """Write pending events every `FLUSH_S` until cancelled; a run that cannot be written less often."""
        said = float("-inf")
        while True:
            with anyio.move_on_after(RETRY_S[0] if self._failing else None):
                await self._wake.wait()
            await anyio.sleep(FLUSH_S)
            self._wake = anyio.Event()
            now = anyio.current_time()
            due = [run for run in self._pending if run not in self._failing or self._failing[run][0] <= now]
            error = await self._flush_all(due)
            if error is not None and now - said >= 1:
                said = now
                count = sum(map(len, self._pending.values()))
                expected = isinstance(error, VoidboxError)
                log.error(
                    "events cannot be written, %d wait: %s", count, error, exc_info=None if expected else error
                )

    async def _flush_all(self, runs: list[str]) -> Exception | None:
        """Each of `runs`, whatever becomes of the others; the first error."""
        first: Exception | None = None
        for run in runs:
            try:
                await self._flush(run)
            except Exception as e:
                first = first or e
        return first

    async def _flush(self, run: str) -> None:
        async with self._locks.setdefault(run, anyio.Lock()):
            # One batch: what arrives meanwhile is for the next flush, or every token would get its own write.
            batch = self._pending.pop(run, [])
            if not batch:
                return
            try:
                # Shielded: half-known writes would be written twice.
                with anyio.CancelScope(shield=True):
                    batch = joined(batch)
                    await self._write(run, batch)
            except BaseException as e:
                if isinstance(e, Exception):
                    wait = self._failing.get(run, (0.0, RETRY_S[0]))[1]
                    self._failing[run] = anyio.current_time() + wait, min(2 * wait, RETRY_S[1])
                self._put_back(run, batch)
                raise
            self._failing.pop(run, None)
            self._lossy.discard(run)
        if news := self._news.pop(run, None):
            news.set()

    def _put_back(self, run: str, batch: list[Entry]) -> None:
        """In front of what has come meanwhile, in order and within bounds."""
        batch += self._pending.get(run, [])
        if len(batch) > MAX_PENDING:
            kept = [entry for entry in batch[MAX_PENDING:] if is_vital(entry.body)]
            if len(kept) < len(batch) - MAX_PENDING:
                self._lost(run)
            batch[MAX_PENDING:] = kept
        self._pending[run] = batch
        self._wake.set()

    def _lost(self, run: str) -> None:
        if run not in self._lossy:
            self._lossy.add(run)
            log.warning("events of %s are dropped: %d wait already and cannot be written", run, MAX_PENDING)

    async def _write(self, run: str, batch: list[Entry]) -> None:
        """Append `batch`, and remove from it what is written or cannot ever be."""
        if run in self._full:
            batch[:] = [entry for entry in batch if is_vital(entry.body)]
        most = len(batch)
        while batch:
            piece = batch[:most]
            try:
                written = await self._store.append(run, piece)
            except LimitExceeded as e:
                if e.limit == "batch" and most > 1:
                    most //= 2
                    continue
                await self._drop(run, batch, e)
            except UserError as e:
                await self._drop(run, batch, e)
            else:
                del batch[: len(piece)]
                for tell in self._recorded:
                    try:
                        tell(run, written)
                    except Exception:  # it is written: who only looks on does not make that undone
                        log.exception("events of %s were kept and not told to all", run)

    async def _drop(self, run: str, batch: list[Entry], refused: VoidboxError) -> None:
        """Take out of `batch`, at once, what the store refuses; something, so that this comes to an end."""
        before = len(batch)
        room, fits = 0, [entry for e in batch if (entry := fitting(e))]
        if isinstance(refused, LimitExceeded) and refused.limit == "events" and run not in self._full:
            self._full.add(run)
            room = max(0, int(refused.value or 0) - await self._store.count_events(run))
            fits = batch[:room] + [entry for entry in batch[room:] if is_vital(entry.body)]
        batch[:] = [] if fits == batch else fits
        if len(batch) < before:
            log.warning("%d events of %s were dropped: %s", before - len(batch), run, refused)


def fitting(entry: Entry) -> Entry | None:
    """`entry` if a store can take it, or else what of it can be: a change of state, its text cleaned or cut."""
    for most in (None, MAX_CUT):
        try:
            body_text(entry)
        except (LimitExceeded, UserError) as e:
            if not is_vital(entry.body):
                return None
            log.warning("the text of an event was cleaned or cut: %s", e)
            text = _clean(entry.body.model_dump(), most if isinstance(e, UserError) else MAX_CUT)
            entry = Entry(type(entry.body).model_validate(text), entry.stage, entry.at)
        else:
            break
    return entry


def _clean(value: Any, most: int | None) -> Any:
    """`value` with every character that UTF-8 has no form for replaced, and at most `most` of them in a text."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value[:most])
    if isinstance(value, dict):
        return {key: _clean(each, most) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each, most) for each in value]
    return value


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
