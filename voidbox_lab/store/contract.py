"""The contract of a store of runs. Not for how one is kept: see `sqlite`, `directory` and `valkey`.

Every backend passes the one suite in ``tests/store/conformance.py``. What the contract promises:

- events of a run are numbered 1, 2, 3, … by the store, without gaps, in the order they were appended;
- `append` is all or nothing, and what it returned survives the death of this process (kill -9);
- a run's record is the fold (`voidbox_lab.store.fold`) of its events, never anything else;
- nothing secret is ever given to a store, so nothing here needs hiding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from voidbox_lab.spec import RunRecord, RunSpec
from voidbox_lab.spec.events import Body, Event, ModelCall, RunChanged, StageChanged

MAX_EVENT_BYTES = 512 * 1024
"""Largest event body, as UTF-8 JSON."""
MAX_EVENTS_PER_RUN = 2_000_000
"""Most events of a run; what `is_vital` is taken beyond it, so that a run can always end and is metered."""
MAX_SPEC_BYTES = 64 << 20
"""Largest run spec, as UTF-8 JSON."""
MAX_PAGE = 5000
"""Most events or runs in one answer."""


@dataclass(frozen=True)
class Entry:
    """An event before the store has numbered it."""

    body: Body
    stage: str | None
    at: float
    """UNIX time, seconds."""


def is_vital(body: Body) -> bool:
    """Whether an event is taken whatever the bounds: changes of state, and what has been paid for."""
    return isinstance(body, RunChanged | StageChanged | ModelCall)


class Store(Protocol):
    """Where runs are kept.

    Errors, for every method: `UserError` (cause ``unknown-run``) for a run that does not exist,
    `LimitExceeded` for something larger than the bounds above, `ProviderError` (cause ``store``) when the
    medium fails (disk full, damaged file, server away); then nothing of that call was written.
    """

    async def create_run(self, run: str, spec: RunSpec, *, at: float) -> RunRecord:
        """A new run, all stages queued, no events yet. `UserError` if the id is taken or cannot be one."""
        ...

    async def append(self, run: str, entries: Sequence[Entry]) -> list[Event]:
        """Number and keep `entries`, fold them into the record; durable when this returns.

        What it costs grows with `entries` and not with the events that the run has.
        """
        ...

    async def get_run(self, run: str) -> RunRecord:
        """The record as of the last acknowledged event."""
        ...

    async def has_ended(self, run: str) -> bool:
        """Whether the run's record says that it has ended, at a cost that does not grow with the run."""
        ...

    async def list_runs(
        self,
        *,
        limit: int = 100,
        unfinished: bool = False,
        before: str | None = None,
        state: str | None = None,
        strict: bool = False,
    ) -> list[RunRecord]:
        """Newest first (by `created_at`, then in order of creation), at most `limit` (capped at `MAX_PAGE`).

        `before`, a run's id: only runs older than that one, so that the last id of a page asks for the next.
        Only those without an end if `unfinished`; only those in `state` if given. A run whose record cannot be
        read is left out, and said so in the log; if `strict` it is a `ProviderError`.
        """
        ...

    async def read_events(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events with ``seq > after``, in order, at most `limit` (capped at `MAX_PAGE`).

        What it costs does not grow with `after`.
        """
        ...

    async def count_events(self, run: str) -> int:
        """How many events the run has, at a cost that does not grow with them."""
        ...

    async def delete_run(self, run: str, *, force: bool = False) -> None:
        """Forget the run, its events, and what `remember` knows of it.

        `UserError` (cause ``run-not-ended``) for a run without an end, unless `force`.
        """
        ...

    async def remember(self, key: str, run: str, stage: str) -> None:
        """Note that `stage` of `run` has the result for `key`, a ``sha256:…`` digest. The latest one wins."""
        ...

    async def recall(self, key: str) -> tuple[str, str] | None:
        """The run and stage last remembered for `key`; None if there is none, or its run was deleted."""
        ...

    async def aclose(self) -> None:
        """Finish what is queued and let go of the medium. Closing twice is allowed."""
        ...
