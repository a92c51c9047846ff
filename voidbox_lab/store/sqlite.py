"""The store in one SQLite file (https://sqlite.org/wal.html).

One thread writes; it takes whatever is queued into one transaction (group commit), so that many
stages that stream at once cost one commit. Readers have connections of their own and never wait for
the writer.

Durability: journal_mode=WAL, synchronous=NORMAL. A commit is in the page cache when it returns, so an
acknowledged event survives the death of this process (kill -9). After a power failure the last
commits may be missing, but the file is never inconsistent; a run's boxes are gone then as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread

from voidbox_lab.errors import ProviderError
from voidbox_lab.spec import RunRecord, RunSpec
from voidbox_lab.spec.events import BODY, Event, RunChanged
from voidbox_lab.store import codec, fold
from voidbox_lab.store.contract import MAX_EVENTS_PER_RUN, Entry
from voidbox_lab.store.schema import migrate
from voidbox_lab.store.sqlite_file import connect, mapped, private

T = TypeVar("T")
Job = tuple[str, Callable[[sqlite3.Connection], Any], "Future[Any]"]
"""The run it is about, what is to be done, and who waits."""
MAX_QUEUED = 4096
MAX_READERS = 4
INCREMENTAL = 2  # https://sqlite.org/pragma.html#pragma_auto_vacuum
PURGE_SLICE = 10_000
"""Events of a deleted run removed in one write."""

_RECORDS = """
SELECT id, spec, record, (
    SELECT group_concat(item, ',') FROM (
        SELECT json_quote(name) || ':' || record AS item FROM run_stages WHERE run = runs.id ORDER BY rowid
    )
) FROM runs
"""
"""Rows for `_record`. One statement, so that a record is of one moment."""

log = logging.getLogger(__name__)


class SqliteStore:
    """A `Store` in the file `path`. Open it with `SqliteStore.open`, close it with `aclose`."""

    def __init__(self, path: Path, *, max_events: int = MAX_EVENTS_PER_RUN) -> None:
        self.path = path
        self._max_events = max_events
        self._jobs: queue.Queue[Job | None] = queue.Queue(MAX_QUEUED)
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._reading = threading.Semaphore(MAX_READERS)
        # Of the writer thread alone: (record, last seq) of runs that go on. Dropped when a transaction fails.
        self._live: dict[str, tuple[RunRecord, int]] = {}
        self._writer: threading.Thread | None = None

    @classmethod
    async def open(cls, path: Path, *, max_events: int = MAX_EVENTS_PER_RUN) -> SqliteStore:
        """The store in `path`, created or migrated as needed.

        Raises:
            UserError: the file was written by a newer release.
            ProviderError: cause ``store``: not a database, or not readable and writable.
        """
        self = cls(path, max_events=max_events)
        with mapped(path):
            connection = await to_thread.run_sync(self._first)
        self._writer = threading.Thread(
            target=self._write_loop, args=(connection,), name="voidbox-store", daemon=True
        )
        self._writer.start()
        return self

    async def create_run(self, run: str, spec: RunSpec, *, at: float) -> RunRecord:
        """See `Store.create_run`."""
        text = codec.spec_text(spec)
        record = fold.new_record(codec.check_run(run), spec, at=at)
        return await self._write(run, partial(self._create, record=record, spec=text))

    async def append(self, run: str, entries: Sequence[Entry]) -> list[Event]:
        """See `Store.append`."""
        if not entries:
            return []
        rows = [(e, codec.body_text(e)) for e in entries]
        return await self._write(run, partial(self._append, run=run, rows=rows))

    async def get_run(self, run: str) -> RunRecord:
        """See `Store.get_run`."""
        rows = await self._read(f"{_RECORDS} WHERE id = ?", (run,))
        if not rows:
            raise codec.unknown(run)
        return self._record(rows[0])

    async def has_ended(self, run: str) -> bool:
        """See `Store.has_ended`."""
        rows = await self._read("SELECT finished_at IS NOT NULL FROM runs WHERE id = ?", (run,))
        if not rows:
            raise codec.unknown(run)
        return bool(rows[0][0])

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
        # rowid: the order of creation.
        older = "(created_at, rowid) < (SELECT created_at, rowid FROM runs WHERE id = ?)"
        only = ["finished_at IS NULL"] if unfinished else []
        only += ["state = ?"] if state is not None else []
        only += [older] if before is not None else []
        where = f"WHERE {' AND '.join(only)}" if only else ""
        sql = f"{_RECORDS} {where} ORDER BY created_at DESC, rowid DESC LIMIT ?"
        values = [v for v in (state, before) if v is not None]
        rows = await self._read(sql, (*values, codec.page(limit)))
        if before is not None and not rows:
            await self._require(before)
        records = []
        for row in rows:
            try:
                records.append(self._record(row))
            except ProviderError as e:
                if strict:
                    raise
                log.error("left out: %s", e)
        return records

    async def read_events(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """See `Store.read_events`."""
        # The run is asked for as well: events of a deleted one may still be there for a moment.
        known = "EXISTS (SELECT 1 FROM runs WHERE id = ?)"
        sql = f"SELECT seq, at, stage, body FROM events WHERE {known} AND run = ? AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - a constant
        rows = await self._read(sql, (run, run, after, codec.page(limit)))
        if not rows:
            await self._require(run)
        try:
            return [
                Event(seq=q, run=run, at=at, stage=s, body=BODY.validate_json(body)) for q, at, s, body in rows
            ]
        except ValueError as e:  # pydantic's
            raise codec.damaged(run, self.path) from e

    async def count_events(self, run: str) -> int:
        """See `Store.count_events`."""
        sql = "SELECT (SELECT max(seq) FROM events WHERE run = runs.id) FROM runs WHERE id = ?"
        rows = await self._read(sql, (run,))
        if not rows:
            raise codec.unknown(run)
        return rows[0][0] or 0

    async def delete_run(self, run: str, *, force: bool = False) -> None:
        """See `Store.delete_run`. The run is gone at once, its events in slices that let others write between."""
        await self._write(run, partial(self._delete, run=run, force=force))
        while await self._write(run, partial(_purge, run=run)):
            pass

    async def remember(self, key: str, run: str, stage: str) -> None:
        """See `Store.remember`."""
        await self._write(run, partial(_remember, key=codec.check_key(key), run=run, stage=stage))

    async def recall(self, key: str) -> tuple[str, str] | None:
        """See `Store.recall`."""
        rows = await self._read("SELECT run, stage FROM stage_cache WHERE key = ?", (codec.check_key(key),))
        return (rows[0][0], rows[0][1]) if rows else None

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        await to_thread.run_sync(self._jobs.put, None)
        await to_thread.run_sync(writer.join)
        while not self._readers.empty():
            self._readers.get_nowait().close()

    # -- the writer's thread --------------------------------------------------------------------

    def _first(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private(self.path)
        connection = connect(self.path)
        try:
            # Before the first table, or it has no effect; lets the file shrink when runs are deleted.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            migrate(connection, self.path)
            # Deletions that the end of a process cut short.
            for (run,) in connection.execute("SELECT run FROM doomed").fetchall():
                while _purge(connection, run):
                    pass
        except BaseException:
            connection.close()
            raise
        return connection

    def _write_loop(self, connection: sqlite3.Connection) -> None:
        closing = False
        while not closing:
            batch = [self._jobs.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < 256:
                    batch.append(self._jobs.get_nowait())
            closing = None in batch
            self._transact(connection, [job for job in batch if job is not None])
        connection.close()

    def _transact(self, connection: sqlite3.Connection, jobs: list[Job]) -> None:
        """All `jobs` in one transaction; a job that fails is undone alone, a commit that fails undoes all."""
        jobs = [job for job in jobs if job[2].set_running_or_notify_cancel()]
        if not jobs:
            return
        done: list[tuple[Future[Any], Any]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for run, work, future in jobs:
                connection.execute("SAVEPOINT job")
                try:
                    result = work(connection)
                except Exception as e:
                    connection.execute("ROLLBACK TO job")
                    self._live.pop(run, None)
                    future.set_exception(e)
                else:
                    done.append((future, result))
                connection.execute("RELEASE job")
            connection.execute("COMMIT")
        except sqlite3.Error as e:
            self._live.clear()
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            for _, _, future in jobs:
                if not future.done():
                    future.set_exception(e)
            return
        for future, result in done:
            future.set_result(result)

    def _create(self, connection: sqlite3.Connection, record: RunRecord, spec: str) -> RunRecord:
        row = (record.id, record.created_at, record.state, spec, codec.head_text(record))
        try:
            sql = "INSERT INTO runs (id, created_at, state, spec, record) VALUES (?, ?, ?, ?, ?)"
            connection.execute(sql, row)
        except sqlite3.IntegrityError:
            raise codec.taken(record.id) from None
        connection.executemany(
            "INSERT INTO run_stages (run, name, record) VALUES (?, ?, ?)",
            [(record.id, name, stage.model_dump_json()) for name, stage in record.stages.items()],
        )
        while _purge(connection, record.id):
            pass
        self._live[record.id] = (record, 0)
        return record

    def _append(self, connection: sqlite3.Connection, run: str, rows: list[tuple[Entry, str]]) -> list[Event]:
        before, last = self._live.get(run) or self._load(connection, run)
        record, events = codec.number(before, last, [entry for entry, _ in rows], self._max_events)
        connection.executemany(
            "INSERT INTO events (run, seq, at, stage, body) VALUES (?, ?, ?, ?, ?)",
            [(run, e.seq, e.at, e.stage, body) for e, (_, body) in zip(events, rows, strict=True)],
        )
        # What changed, and no more: its cost must not grow with the number of stages, or with the spec.
        names = {e.stage for e in events if e.stage in record.stages}
        changed = [s for s in map(record.stages.__getitem__, names) if s is not before.stages[s.name]]
        connection.executemany(
            "UPDATE run_stages SET record = ? WHERE run = ? AND name = ?",
            [(stage.model_dump_json(), run, stage.name) for stage in changed],
        )
        if any(isinstance(e.body, RunChanged) for e in events):
            connection.execute(
                "UPDATE runs SET record = ?, state = ?, finished_at = ? WHERE id = ?",
                (codec.head_text(record), record.state, record.finished_at, run),
            )
        if record.finished_at is None:
            self._live[run] = (record, events[-1].seq)
        else:
            self._live.pop(run, None)
        return events

    def _delete(self, connection: sqlite3.Connection, run: str, force: bool) -> None:
        row = connection.execute("SELECT finished_at FROM runs WHERE id = ?", (run,)).fetchone()
        if row is None:
            raise codec.unknown(run)
        if row[0] is None and not force:
            raise codec.unended(run)
        connection.execute("DELETE FROM runs WHERE id = ?", (run,))
        connection.execute("DELETE FROM run_stages WHERE run = ?", (run,))
        connection.execute("DELETE FROM stage_cache WHERE run = ?", (run,))
        connection.execute("INSERT INTO doomed (run) VALUES (?)", (run,))
        self._live.pop(run, None)

    def _load(self, connection: sqlite3.Connection, run: str) -> tuple[RunRecord, int]:
        row = connection.execute(f"{_RECORDS} WHERE id = ?", (run,)).fetchone()
        if row is None:
            raise codec.unknown(run)
        last = connection.execute("SELECT max(seq) FROM events WHERE run = ?", (run,)).fetchone()[0]
        return self._record(row), last or 0

    def _record(self, row: tuple[Any, ...]) -> RunRecord:
        run, spec, head, stages = row
        try:
            return codec.record_of(spec, codec.whole_text(head, stages or ""))
        except ValueError as e:  # pydantic's
            raise codec.damaged(run, self.path) from e

    async def _write(self, run: str, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._writer is None:
            raise ProviderError(f"The store {self.path} is closed.", cause="store")
        future: Future[T] = Future()
        try:
            self._jobs.put_nowait((run, work, future))
        except queue.Full:
            raise ProviderError(f"The store {self.path} has {MAX_QUEUED} writes waiting.", cause="store") from None
        with mapped(self.path):
            return await asyncio.wrap_future(future)

    # -- readers --------------------------------------------------------------------------------

    async def _require(self, run: str) -> None:
        if not await self._read("SELECT 1 FROM runs WHERE id = ?", (run,)):
            raise codec.unknown(run)

    async def _read(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._writer is None:
            raise ProviderError(f"The store {self.path} is closed.", cause="store")
        with mapped(self.path):
            return await to_thread.run_sync(self._query, sql, values)

    def _query(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._reading:
            try:
                connection = self._readers.get_nowait()
            except queue.Empty:
                connection = connect(self.path)
                connection.execute("PRAGMA query_only = 1")
            try:
                return connection.execute(sql, values).fetchall()
            finally:
                self._readers.put(connection)


def _purge(connection: sqlite3.Connection, run: str) -> bool:
    """Remove a slice of a deleted run's events; whether there may be more."""
    if not connection.execute("SELECT 1 FROM doomed WHERE run = ?", (run,)).fetchone():
        return False  # done, or the id is in use again
    first = connection.execute("SELECT min(seq) FROM events WHERE run = ?", (run,)).fetchone()[0]
    if first is None:
        connection.execute("DELETE FROM doomed WHERE run = ?", (run,))
        return False
    connection.execute("DELETE FROM events WHERE run = ? AND seq < ?", (run, first + PURGE_SLICE))
    if connection.execute("PRAGMA auto_vacuum").fetchone()[0] == INCREMENTAL:
        for _ in range(connection.execute("PRAGMA freelist_count").fetchone()[0]):
            # A page each: as a statement without rows it is stepped once, however many it is asked for.
            connection.execute("PRAGMA incremental_vacuum(1)")
    return True


def _remember(connection: sqlite3.Connection, key: str, run: str, stage: str) -> None:
    if not connection.execute("SELECT 1 FROM runs WHERE id = ?", (run,)).fetchone():
        raise codec.unknown(run)
    connection.execute("INSERT OR REPLACE INTO stage_cache (key, run, stage) VALUES (?, ?, ?)", (key, run, stage))
