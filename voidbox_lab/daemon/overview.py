"""``GET /v1/overview``: all runs at a glance, cheap enough to be asked every second or two by every open window.

Reading a record means reading its whole spec, so those of runs that have ended are not read each time. Which runs
there are is asked again when one begins or ends, and now and then: some were deleted or came and went meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import anyio

from voidbox_lab.errors import UserError
from voidbox_lab.spec import TERMINAL, RunRecord
from voidbox_lab.spec.overview import MAX_AT_WORK, BoxGlance, Overview, Room, RunGlance, Spent

if TYPE_CHECKING:
    from voidbox_lab.daemon.core import Daemon

FRESH_S = 0.5
"""Answers within so long of each other are of one look at the store."""
RECENT_S = 5.0
"""How often the newest runs are listed at least."""
ALL_S = 60.0
"""How often all since `since` are."""
PAGE = 50
MAX_TITLED = 3
"""Most stages that the title of a run without a name names."""
MAX_RUNS = 5000
"""Most runs that are counted."""
WAITING = frozenset({"queued", "retrying"})
"""States of a stage that has no box."""


class Lookout:
    """What is known of the runs of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._lock = anyio.Lock()
        self._glances: dict[str, RunGlance] = {}
        self._boxes: list[BoxGlance] = []
        self._active: set[str] = set()
        self._since, self._limit = float("inf"), 0
        self._looked = self._listed = self._all = float("-inf")

    async def overview(self, since: float, limit: int) -> Overview:
        """The overview, with the spending of runs begun at `since` (UNIX time) or later and at most `limit` runs
        besides those in progress."""
        async with self._lock:
            await self._look(since, limit)
        runs = sorted(self._glances.values(), key=lambda run: run.created_at, reverse=True)
        counted = [run for run in runs if run.created_at >= since]
        live = [run for run in runs if run.id in self._active]
        rest = [run for run in runs if run.id not in self._active]
        return Overview(
            health=self._daemon.health(),
            room=self._room(),
            spent=Spent(
                since=since,
                runs=len(counted),
                tokens=sum(run.tokens for run in counted),
                cost_usd=sum(run.cost_usd for run in counted),
                unpriced=sum(run.unpriced for run in counted),
            ),
            runs=(*live, *rest[:limit]),
            boxes=tuple(self._boxes),
        )

    def _room(self) -> Room:
        admission, backend = self._daemon.admission, self._daemon.backend
        return Room(
            memory_mb=admission.capacity.memory_mb,
            memory_used_mb=admission.used_mb,
            vcpus=admission.capacity.vcpus,
            vcpus_used=admission.used_vcpus,
            spares=backend.spares,
            spares_mb=backend.spare_mb,
        )

    async def _look(self, since: float, limit: int) -> None:
        now, active, before = time.monotonic(), set(self._daemon.runner.active), self._active
        covered = since >= self._since and limit <= self._limit
        if covered and active == before and now - self._looked < FRESH_S:
            return
        if not covered or now - self._all >= ALL_S:
            known: dict[str, RunGlance] = {}
            await self._list(known, since, limit)
            # Only now: a store that fails half-way must not leave half of the runs for all of them.
            self._since, self._limit, self._all, self._listed = since, limit, now, now
            self._glances = known
        elif active != before or now - self._listed >= RECENT_S:
            await self._list(self._glances, float("inf"), 0)
            self._listed = now
        self._active, self._boxes = active, []
        for run in active | before:
            try:
                record = await self._daemon.store.get_run(run)
            except UserError:
                self._glances.pop(run, None)  # deleted
                continue
            self._glances[run] = glance(record)
            self._boxes += self._boxes_of(record)
        self._looked = now

    async def _list(self, known: dict[str, RunGlance], since: float, least: int) -> None:
        """Take into `known` the newest page of runs, and further ones until there are `least` and they are older
        than `since`."""
        before, count = None, 0
        while count < MAX_RUNS:
            try:
                page = await self._daemon.store.list_runs(limit=PAGE, before=before)
            except UserError:
                return  # `before` was deleted meanwhile; the next look at all has the rest
            newest = {record.id: glance(record) for record in page}
            oldest = page[-1].created_at if len(page) == PAGE else float("-inf")
            if before is None:
                gone = [i for i, run in known.items() if run.created_at > oldest and i not in newest]
                for run in gone:
                    del known[run]
            known |= newest
            count += len(page)
            if len(page) < PAGE or (oldest < since and count >= least):
                return
            before = page[-1].id

    def _boxes_of(self, record: RunRecord) -> Iterable[BoxGlance]:
        for name, stage in record.stages.items():
            if stage.box is not None and stage.state not in TERMINAL and stage.state not in WAITING:
                curves = self._daemon.gauges.of(record.id, name)
                yield BoxGlance(
                    run=record.id,
                    stage=name,
                    state=stage.state,
                    facts=stage.box,
                    cpu=tuple(curves.cpu),
                    memory=tuple(curves.memory),
                )


def _names(names: list[str]) -> str:
    more = len(names) - MAX_TITLED
    return ", ".join(names[:MAX_TITLED]) + (f" and {more} more" if more > 0 else "")


def glance(record: RunRecord) -> RunGlance:
    """`record` in one line."""
    stages = list(record.stages.values())
    counts = dict.fromkeys((s.state for s in stages), 0)
    for stage in stages:
        counts[stage.state] += 1
    at_work = [s.name for s in stages if s.state not in TERMINAL and s.state not in WAITING]
    return RunGlance(
        id=record.id,
        title=record.spec.name or _names([s.name for s in stages]),
        state=record.state,
        created_at=record.created_at,
        finished_at=record.finished_at,
        stages=counts,
        at_work=tuple(at_work[:MAX_AT_WORK]),
        isolation=tuple(sorted({s.box.isolation for s in stages if s.box is not None})),
        sources=tuple(sorted({s.model_source for s in stages if s.model_source is not None})),
        tokens=sum(s.tokens.total for s in stages),
        cost_usd=sum(s.cost_usd or 0.0 for s in stages),
        unpriced=any(s.unpriced for s in stages),
        trouble=record.trouble.message if record.trouble else None,
    )
