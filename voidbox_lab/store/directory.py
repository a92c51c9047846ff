"""The store as a directory that can be read with a pager: one directory per run.

    .lock              flock(2)ed by the one process that has the store open
    .stages.jsonl      the index of the stage cache: {"key", "run", "stage"}, or {"forget": run}
    <id>/spec.json     the spec, as it was submitted
    <id>/events.jsonl  the truth: a header, then the events (`eventlog`)
    <id>/events.index  where to seek in them
    <id>/record.json   the fold of the events so far, and how far that is: a cache

Everything is 0600 or 0700. Heads of all runs (about 300 bytes each) are in memory.

Durability is that of `sqlite`: an acknowledged event is in the page cache, so it survives the death of this
process (kill -9). The disk is waited for (fsync) when a run is created, every `CHECKPOINT_EVENTS` events, when
it ends, and when the store is closed; after a power failure the last events of a run in progress may be
missing, whole batches of them.
"""

from __future__ import annotations

import bisect
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.spec import RunRecord, RunSpec
from voidbox_lab.spec.events import Event
from voidbox_lab.store import codec, fold
from voidbox_lab.store.contract import MAX_EVENTS_PER_RUN, Entry
from voidbox_lab.store.eventlog import Extent
from voidbox_lab.store.rundir import Head, RunDir, Unreadable, lock
from voidbox_lab.store.stageindex import StageIndex

T = TypeVar("T")
CHECKPOINT_EVENTS = 1000
"""A record is written when it is this many events behind; so many are folded again at most after a crash."""
CHECKPOINT_BYTES = 8 << 20
"""The same in bytes of events."""
MAX_READERS = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Live:
    """A run whose record on the disk is behind."""

    record: RunRecord
    saved: Extent


class DirectoryStore:
    """A `Store` in the directory `root`. Open it with `DirectoryStore.open`, close it with `aclose`."""

    def __init__(self, root: Path, *, max_events: int = MAX_EVENTS_PER_RUN) -> None:
        self.root = root
        self._max_events = max_events
        # One thread at a time writes; all below is changed there, by single assignments that readers see whole.
        self._writing = CapacityLimiter(1)
        self._reading = CapacityLimiter(MAX_READERS)
        self._heads: dict[str, Head] = {}
        self._order: list[tuple[float, int, str]] = []
        self._live: dict[str, _Live] = {}
        self._cache: StageIndex | None = None
        self._lock: int | None = None

    @classmethod
    async def open(cls, root: Path, *, max_events: int = MAX_EVENTS_PER_RUN) -> DirectoryStore:
        """The store in `root`, created if missing; what a crash left torn is cut.

        A run whose files are not what this store writes is left alone, and said so in the log.

        Raises:
            ProviderError: cause ``store``: not readable and writable, or open in another process.
        """
        self = cls(root, max_events=max_events)
        with self._mapped():
            await to_thread.run_sync(self._first)
        return self

    async def create_run(self, run: str, spec: RunSpec, *, at: float) -> RunRecord:
        """See `Store.create_run`."""
        record = fold.new_record(codec.check_run(run), spec, at=at)
        return await self._write(partial(self._create, record, codec.spec_text(spec)))

    async def append(self, run: str, entries: Sequence[Entry]) -> list[Event]:
        """See `Store.append`."""
        if not entries:
            return []
        return await self._write(partial(self._append, run, [(e, codec.body_text(e)) for e in entries]))

    async def get_run(self, run: str) -> RunRecord:
        """See `Store.get_run`."""
        self._head(run)
        return await self._read(partial(self._record, run))

    async def has_ended(self, run: str) -> bool:
        """See `Store.has_ended`."""
        return self._head(run).finished_at is not None

    async def list_runs(
        self,
        *,
        limit: int = 100,
        unfinished: bool = False,
        before: str | None = None,
        state: str | None = None,
        strict: bool = False,
    ) -> list[RunRecord]:
        """See `Store.list_runs`."""
        self._check_open()
        runs = list(self._order)
        if before is not None:
            head = self._head(before)
            del runs[bisect.bisect_left(runs, (head.created_at, head.order, before)) :]
        chosen: list[str] = []
        for _, _, run in reversed(runs):
            if len(chosen) >= codec.page(limit):
                break
            found = self._heads.get(run)
            if found is None or (unfinished and found.finished_at is not None):
                continue
            if state is None or found.state == state:
                chosen.append(run)
        return await self._read(partial(self._records, chosen, strict))

    async def read_events(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """See `Store.read_events`."""
        extent = self._head(run).extent
        return await self._read(partial(self._events, run, extent, after, codec.page(limit)))

    async def count_events(self, run: str) -> int:
        """See `Store.count_events`."""
        return self._head(run).extent.count

    async def delete_run(self, run: str, *, force: bool = False) -> None:
        """See `Store.delete_run`."""
        gone = await self._write(partial(self._delete, run, force))
        # Out of the writer's way; what a crash leaves of it goes at the next start.
        await to_thread.run_sync(partial(shutil.rmtree, gone, ignore_errors=True))

    async def remember(self, key: str, run: str, stage: str) -> None:
        """See `Store.remember`."""
        await self._write(partial(self._remember, codec.check_key(key), run, stage))

    async def recall(self, key: str) -> tuple[str, str] | None:
        """See `Store.recall`."""
        return self._check_open().get(codec.check_key(key))

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        if self._lock is not None:
            await to_thread.run_sync(self._close, limiter=self._writing)

    # -- in threads -----------------------------------------------------------------------------

    def _first(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.root.stat().st_mode & 0o077:
            self.root.chmod(0o700)
        self._lock = lock(self.root / ".lock")
        try:
            for place in self.root.iterdir():
                if place.name.startswith((".new-", ".gone-")):
                    shutil.rmtree(place, ignore_errors=True)
                elif not place.name.startswith(".") and stat.S_ISDIR(place.lstat().st_mode):
                    self._recover(place)
            self._order = sorted((head.created_at, head.order, run) for run, head in self._heads.items())
            self._cache = StageIndex(self.root / ".stages.jsonl", self._heads.__contains__)
        except BaseException:
            os.close(self._lock)
            self._lock = None
            raise

    def _recover(self, place: Path) -> None:
        try:
            self._heads[place.name] = RunDir(place, codec.check_run(place.name)).recover()
        except (Unreadable, UserError, FileNotFoundError) as e:
            log.error("left alone, as no run that can be read: %s", e)

    def _create(self, record: RunRecord, spec: str) -> RunRecord:
        run = record.id
        order = 1 + max((place[1] for place in self._order), default=0)
        try:
            head = self._dir(run).create(record, spec, order)
        except FileExistsError:
            raise codec.taken(run) from None
        self._live[run] = _Live(record, head.extent)
        self._heads[run] = head
        bisect.insort(self._order, (head.created_at, order, run))
        return record

    def _append(self, run: str, rows: list[tuple[Entry, str]]) -> list[Event]:
        head = self._head(run)
        live = self._live.get(run) or _Live(self._dir(run).load(), head.extent)
        record, events = codec.number(live.record, head.extent.count, [e for e, _ in rows], self._max_events)
        last = events[-1].seq
        lines = [codec.line(e, last, body).encode() + b"\n" for e, (_, body) in zip(events, rows, strict=True)]
        extent = self._dir(run).log.append(head.extent, lines)
        live = replace(live, record=record)
        self._live[run] = live
        self._heads[run] = replace(head, state=record.state, finished_at=record.finished_at, extent=extent)
        behind = extent.count - live.saved.count, extent.size - live.saved.size
        if record.finished_at is not None or behind[0] >= CHECKPOINT_EVENTS or behind[1] >= CHECKPOINT_BYTES:
            self._checkpoint(run)
        return events

    def _checkpoint(self, run: str) -> None:
        """Save the record; not being able to is no failure of what was appended, only more to fold at a start."""
        record, extent = self._live[run].record, self._heads[run].extent
        try:
            self._dir(run).save(record, extent)
        except OSError as e:
            log.warning("the record of %s cannot be written: %s", run, e)
            return
        self._live[run] = _Live(record, extent)
        if record.finished_at is not None:
            del self._live[run]

    def _record(self, run: str) -> RunRecord:
        live = self._live.get(run)
        with self._may_go(run):
            return live.record if live else self._dir(run).load()

    def _records(self, runs: Sequence[str], strict: bool) -> list[RunRecord]:
        records = []
        for run in runs:
            try:
                records.append(self._record(run))
            except UserError:  # deleted meanwhile
                continue
            except (Unreadable, FileNotFoundError) as e:
                if strict:
                    raise
                log.error("left out, as no run that can be read: %s", e)
        return records

    def _events(self, run: str, extent: Extent, after: int, limit: int) -> list[Event]:
        with self._may_go(run):
            return self._dir(run).log.read(extent, after, limit)

    def _delete(self, run: str, force: bool) -> Path:
        head = self._head(run)
        if head.finished_at is None and not force:
            raise codec.unended(run)
        del self._heads[run]
        try:
            gone = self._dir(run).place.rename(self.root / f".gone-{secrets.token_hex(8)}")
        except BaseException:
            self._heads[run] = head
            raise
        self._live.pop(run, None)
        self._order.remove((head.created_at, head.order, run))
        try:
            self._check_open().forget(run)
        except OSError as e:
            log.warning("the stage cache cannot be written: %s", e)
        return gone

    def _remember(self, key: str, run: str, stage: str) -> None:
        self._head(run)
        self._check_open().put(key, run, stage)

    def _close(self) -> None:
        if self._lock is None:
            return
        for run, live in list(self._live.items()):
            if live.saved != self._heads[run].extent:
                self._checkpoint(run)
        self._cache = None
        os.close(self._lock)
        self._lock = None

    # -- shared ---------------------------------------------------------------------------------

    def _dir(self, run: str) -> RunDir:
        return RunDir(self.root / run, run)

    def _head(self, run: str) -> Head:
        self._check_open()
        # Only what is in here becomes a path.
        if head := self._heads.get(run):
            return head
        raise codec.unknown(run)

    def _check_open(self) -> StageIndex:
        if self._cache is None:
            raise ProviderError(f"The store {self.root} is closed.", cause="store")
        return self._cache

    @contextmanager
    def _may_go(self, run: str) -> Iterator[None]:
        """A file of `run` that is not there any more is an unknown run, if that was deleted meanwhile."""
        try:
            yield
        except FileNotFoundError:
            if run in self._heads:
                raise
            raise codec.unknown(run) from None

    async def _write(self, work: Callable[[], T]) -> T:
        def checked() -> T:
            self._check_open()  # again, since it may have waited behind `aclose`
            return work()

        self._check_open()
        with self._mapped():
            return await to_thread.run_sync(checked, limiter=self._writing)

    async def _read(self, work: Callable[[], T]) -> T:
        with self._mapped():
            return await to_thread.run_sync(work, limiter=self._reading)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise ProviderError(
                f"The store {self.root} failed ({e}); check the disk's space and the files' permissions.",
                cause="store",
            ) from e
        except Unreadable as e:
            raise ProviderError(f"The store is damaged: {e}; move that directory away.", cause="store") from e
