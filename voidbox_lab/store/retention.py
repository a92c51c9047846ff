"""What is kept and for how long: old runs go, then the files that only they used. Not for deciding when."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

from voidbox_lab.errors import UserError
from voidbox_lab.spec import RunRecord
from voidbox_lab.store.artifacts import Artifacts
from voidbox_lab.store.contract import Store

YOUNG_S = 3600.0
"""An artifact younger than this stays in any case: a client uploads before it submits."""
PAGE = 100
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Pruned:
    """What `prune` removed, or would remove."""

    runs: tuple[str, ...]
    artifacts: tuple[str, ...]
    """Digests."""
    bytes: int
    """Of the artifacts. What the runs took in the store is not counted."""


async def prune(
    store: Store,
    artifacts: Artifacts,
    *,
    older_than_s: float | None = None,
    keep: int | None = None,
    states: Collection[str] | None = None,
    dry_run: bool = False,
    now: float,
) -> Pruned:
    """Delete ended runs, then the artifacts that no remaining run refers to.

    A run goes if it passes every test that is given: it ended more than `older_than_s` seconds before `now`
    (UNIX time); it is not one of the newest `keep` that ended (in `states`, if given); its state is one of
    `states`. Without any test no run goes. A run that has not ended never does. An artifact goes if no spec and
    no record of a remaining run has its digest, wherever in it, and it was not uploaded or asked for within
    `YOUNG_S`. With `dry_run` nothing changes.

    Raises:
        UserError: a negative number.
        ProviderError: cause ``store``, also for a run that cannot be read; what was deleted before stays deleted.
    """
    if (older_than_s or 0) < 0 or (keep or 0) < 0:
        raise UserError("Runs are kept for a number of seconds, and by a number of runs, that is not negative.")
    any_test = older_than_s is not None or keep is not None or states is not None
    runs: list[str] = []
    ended = 0
    async for record in _all(store):
        if record.finished_at is None or (states is not None and record.state not in states):
            continue
        ended += 1
        old = older_than_s is None or now - record.finished_at > older_than_s
        if any_test and old and (keep is None or ended > keep):
            runs.append(record.id)
    deleted = runs if dry_run else [run for run in runs if await _delete(store, run)]
    # Strictly: nobody knows what a record that cannot be read refers to.
    # Listed before the references are read: of what is uploaded after that, nothing is even looked at.
    candidates = {a.digest: a for a in await artifacts.list() if now - a.modified > YOUNG_S}
    gone = set(deleted)
    async for record in _all(store, strict=True) if candidates else _none():
        if record.id not in gone:
            for digest in _DIGEST.findall(record.model_dump_json()):
                candidates.pop(digest, None)
    young = now - YOUNG_S
    removed = [a for a in candidates.values() if dry_run or await artifacts.remove(a.digest, before=young)]
    return Pruned(tuple(deleted), tuple(a.digest for a in removed), sum(a.size for a in removed))


async def _delete(store: Store, run: str) -> bool:
    try:
        await store.delete_run(run)
    except UserError:
        return False  # somebody else did, or it goes on
    return True


async def _all(store: Store, *, strict: bool = False) -> AsyncIterator[RunRecord]:
    """Every run, newest first."""
    seen: list[str] = []
    while True:
        try:
            page = await store.list_runs(limit=PAGE, before=seen[-1] if seen else None, strict=strict)
        except UserError:
            seen.pop()  # that one was deleted meanwhile; its neighbour marks the same place
            continue
        if not page:
            return
        seen += [record.id for record in page]
        for record in page:
            yield record


async def _none() -> AsyncIterator[RunRecord]:
    return
    yield
