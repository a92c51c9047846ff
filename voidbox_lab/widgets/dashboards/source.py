"""What dashboards know of the runs, read from the daemon: bounded, at a bounded rate, once for all pages of this
process. Blocking; pages call it in a thread.

Runs that have ended do not change, so what is read again is what is new and what has not ended. Of those that a
dead daemon left interrupted, which rest until somebody resumes them, it is the last event alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import httpx

from voidbox_lab.client import Client
from voidbox_lab.errors import ProviderError, UserError, VoidboxError
from voidbox_lab.observe.across import RunFacts, facts
from voidbox_lab.settings import Settings
from voidbox_lab.spec import AT_REST, TERMINAL, RunRecord
from voidbox_lab.spec.events import Event, RunChanged

MAX_RUNS = 1000
"""Newest runs that are known."""
MAX_STAGES = 50_000
"""Of these runs together; beyond it older ones are left out."""
MAX_EVENTS = 50_000
"""Newest events of a run that are looked at for its telemetry and model calls."""
PAGE = 50
"""Runs asked for at once: records hold whole specs."""
BUSY_S, QUIET_S = 2.0, 15.0
"""Time between two readings, while something runs and while nothing does."""
WHOLE_S = 600.0
"""After so long everything is read anew, for runs may have been deleted."""


@dataclass(frozen=True)
class Snapshot:
    """The runs at one moment."""

    runs: tuple[RunFacts, ...] = ()
    """Newest first."""
    version: int = 0
    """Another one if, and only if, `runs` are others."""
    at: float = 0.0
    """When they were read: UNIX time, seconds; 0: never."""
    more: bool = False
    """There are older ones that were left out."""
    trouble: str | None = None
    """Why the last reading failed; `runs` are then those of the one before."""

    @property
    def active(self) -> int:
        """How many neither have ended nor rest."""
        return sum(run.state not in AT_REST for run in self.runs)


class Runs:
    """The newest runs of the daemon of `settings`. For any thread.

    The first reading starts the daemon if there is none; later ones do not, so that one which was ended stays so.
    """

    def __init__(
        self, settings: Settings | None = None, *, limit: int = MAX_RUNS, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings or Settings.from_env()
        self._limit, self._clock = limit, clock
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._found = False
        self._whole_at = 0.0
        self.snapshot = Snapshot()

    def refresh(self) -> Snapshot:
        """The runs now, read again if it is time; a failed reading is in its `trouble`."""
        with self._lock:
            last = self.snapshot
            if self._clock() - last.at < (BUSY_S if last.active else QUIET_S):
                return last
            try:
                self._read()
            except VoidboxError as e:
                self.snapshot = replace(last, at=self._clock(), trouble=e.message)
            return self.snapshot

    def open(self) -> Snapshot:
        """The first reading.

        Raises:
            VoidboxError: it failed.
        """
        with self._lock:
            if not self._found:
                self._read()
            return self.snapshot

    def record(self, run: str) -> RunRecord:
        """The whole record of one run. Raises `VoidboxError`."""
        with self._lock:
            return self._connected().run(run)

    def events(self, run: str, after: int = 0) -> list[Event]:
        """Its events after number `after` that there are now, at most `MAX_EVENTS` of the last. `VoidboxError`."""
        with self._lock:
            client = self._connected()
            tail = MAX_EVENTS if after == 0 else None
            found = []
            for event in client.events(run, after, follow=False, tail=tail):
                found.append(event)
                if len(found) >= MAX_EVENTS:
                    break
            return found

    def close(self) -> None:
        """Close the connection. It is opened again when needed."""
        with self._lock:
            self._drop()

    # -- with the lock held ----------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._read_with(self._connected())
        except ProviderError as e:
            self._drop()
            if e.cause != "daemon-lost" or not self._found:
                raise
            # The daemon of before, or its connection, is gone: perhaps there is another.
            self._read_with(self._connected())

    def _read_with(self, client: Client) -> None:
        now = self._clock()
        whole = now - self._whole_at > WHOLE_S or not self._found
        known = {} if whole else {run.id: run for run in self.snapshot.runs}
        fresh: dict[str, RunFacts] = {}
        more, before = False, None
        while True:
            page = client.runs(limit=PAGE, before=before)
            fresh |= {record.id: facts(record) for record in page}
            more = len(page) == PAGE
            enough = len(fresh) >= self._limit or sum(len(run.stages) for run in fresh.values()) >= MAX_STAGES
            if not more or enough or page[-1].id in known:
                break
            before = page[-1].id
        oldest = min((run.created_at for run in fresh.values()), default=0.0)
        # What lies among the pages and is not on them was deleted.
        older = (
            {} if not more else {i: run for i, run in known.items() if run.created_at <= oldest and i not in fresh}
        )
        for run in [run for run in older.values() if run.state not in TERMINAL]:
            try:
                if run.state not in AT_REST or not _rests(client, run.id):
                    older[run.id] = facts(client.run(run.id))
            except UserError:
                del older[run.id]
        self._keep(fresh | older, more=more if whole or not older else self.snapshot.more, at=now)
        if whole:
            self._whole_at = now
        self._found = True

    def _keep(self, runs: dict[str, RunFacts], *, more: bool, at: float) -> None:
        kept: list[RunFacts] = []
        stages = 0
        for run in runs.values():
            stages += len(run.stages)
            if len(kept) >= self._limit or (kept and stages > MAX_STAGES):
                more = True
                break
            kept.append(run)
        same = tuple(kept) == self.snapshot.runs
        version = self.snapshot.version + (not same)
        self.snapshot = Snapshot(tuple(kept), version, at, more)

    def _connected(self) -> Client:
        if self._client is None:
            # Without keys: whoever submits a run brings them.
            client = Client(self._settings, start=not self._found, env={})
            try:
                self._client = client.__enter__()
            except httpx.TransportError as e:
                raise ProviderError("No daemon answers; it starts with the next run.", cause="daemon-lost") from e
        return self._client

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(httpx.HTTPError):
                client.close()


def _rests(client: Client, run: str) -> bool:
    """Whether an interrupted run is so still, by its last event: its record may be large."""
    return any(
        isinstance(event.body, RunChanged) and event.body.state == "interrupted"
        for event in client.events(run, follow=False, tail=1)
    )
