"""The daemon's one object: what the API's routes and the server's life-cycle work on.

Not for HTTP (`app`), nor for sockets, signals and locks (`serve`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from voidbox_lab import __version__
from voidbox_lab.cluster import DaskExecutor
from voidbox_lab.daemon.activity import Activity
from voidbox_lab.daemon.backend import Backend, MakeBackend
from voidbox_lab.daemon.gauges import Gauges
from voidbox_lab.daemon.overview import Lookout
from voidbox_lab.daemon.pages import Pages
from voidbox_lab.engine import (
    Admission,
    Capacity,
    Executor,
    Host,
    Journal,
    LocalExecutor,
    Runner,
    StageCache,
    interrupt,
)
from voidbox_lab.errors import UserError, VoidboxError
from voidbox_lab.machines import available_memory_mb
from voidbox_lab.observe.destinations import Destinations
from voidbox_lab.settings import Settings
from voidbox_lab.spec import RunRecord, RunSpec, Trouble
from voidbox_lab.spec.api import API_VERSION, Health, PruneReport, PruneRequest
from voidbox_lab.store import Artifacts, Store, open_store, prune

SHUTDOWN_S = 30.0
"""Bound on closing the boxes of cancelled runs when the daemon ends."""

log = logging.getLogger(__name__)


class Daemon:
    """Store, engine and backend of this process. Open it with `Daemon.open`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        artifacts: Artifacts,
        journal: Journal,
        backend: Backend,
        runner: Runner,
        admission: Admission,
        gauges: Gauges,
    ) -> None:
        self.settings, self.store, self.artifacts, self.journal = settings, store, artifacts, journal
        self.backend, self.runner, self.admission = backend, runner, admission
        self.pages = Pages(store)
        self.activity = Activity()
        self.gauges = gauges
        self.lookout = Lookout(self)
        self.tcp: str | None = None
        """The URL of the TCP listener, if there is one."""
        self.stopping = anyio.Event()
        """Somebody asked for the end; runs are being cancelled."""
        self.stopped = anyio.Event()
        """Nothing runs any more; streams end."""
        self._started = time.monotonic()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        make_backend: MakeBackend,
        *,
        capacity: Capacity | None = None,
    ) -> AsyncIterator[Daemon]:
        """The daemon over the store in `settings.data`. Runs that a dead daemon left are put to rest first."""
        async with AsyncExitStack() as stack:
            store = await open_store(settings.store, settings.data)
            stack.push_async_callback(store.aclose)
            artifacts = await Artifacts.open(settings.data / "artifacts")
            gauges = Gauges()
            recorded = [gauges.recorded]
            if (to := Destinations.of(settings)) is not None:
                from voidbox_lab.observe.export import exporting  # OpenTelemetry: for whoever has a collector

                try:
                    exporter = await stack.enter_async_context(exporting(to, store))
                except Exception as e:  # what the SDK makes of OTEL_* variables that may be for somebody else
                    log.warning("no spans, metrics or logs are exported: %s: %s", type(e).__name__, e)
                else:
                    recorded.append(exporter.recorded)
            journal = Journal(store, recorded=recorded)
            await _bury(store, journal)
            backend = await stack.enter_async_context(make_backend(settings))
            host = Host(boxes=backend, adapter=backend.adapter, session=backend.session)
            admission = Admission(capacity or Capacity.of_host(), free_mb=lambda: _free_mb(backend))
            executor: Executor = LocalExecutor(host, admission)
            if settings.scheduler is not None:
                opening = DaskExecutor.open(settings.scheduler, backend.adapter, backend.identity)
                executor = await stack.enter_async_context(opening)
            cache = StageCache(store, backend.identity)
            serving = Runner.serving(store, artifacts, journal, executor, cache)
            runner = await stack.enter_async_context(serving)
            yield cls(settings, store, artifacts, journal, backend, runner, admission, gauges)

    @property
    def busy(self) -> bool:
        """Whether a run is in progress or a box is open."""
        return bool(self.runner.active) or self.admission.boxes > 0

    def health(self) -> Health:
        """What `GET /v1/health` says."""
        return Health(
            version=__version__,
            api=API_VERSION,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started,
            runs=len(self.runner.active),
            boxes=self.admission.boxes,
            keys=tuple(self.backend.key_names),
            tcp=self.tcp,
        )

    async def submit(self, spec: RunSpec) -> RunRecord:
        """Begin a run. `UserError` if it can be known now that it cannot work; see `Runner.submit`."""
        self._check(spec)
        return await self.runner.submit(spec)

    async def resume(self, run: str) -> RunRecord:
        """Let a paused run go on, or one whose daemon died; see `Runner.resume`."""
        if run not in self.runner.active:
            self._check((await self.store.get_run(run)).spec)
        return await self.runner.resume(run)

    def _check(self, spec: RunSpec) -> None:
        if self.settings.scheduler is not None:
            return  # which keys and scripts there are, each worker knows for itself
        for stage in spec.stages:
            priced = spec.budget.usd is not None or stage.box.budget.usd is not None
            self.backend.check(stage.box, priced=priced)

    async def prune(self, request: PruneRequest) -> PruneReport:
        """Forget old runs; see `voidbox_lab.store.prune`."""
        gone = await prune(
            self.store,
            self.artifacts,
            older_than_s=request.older_than_s,
            keep=request.keep,
            states=request.states,
            dry_run=request.dry_run,
            now=time.time(),
        )
        return PruneReport(runs=tuple(gone.runs), artifacts=len(gone.artifacts), bytes=gone.bytes)

    def add_keys(self, keys: Mapping[str, str]) -> None:
        """Hold model keys, by environment variable name, in memory.

        Raises:
            UserError: a name or value that cannot be one; the value is not repeated.
        """
        for name, value in keys.items():
            if not name.isascii() or not name.isidentifier() or len(name) > 128 or len(value) > 8192:
                raise UserError(f"{name[:128]!r} is not the name of a model key, or its value is too long.")
        self.backend.add_keys(keys)

    async def sweep(self) -> list[str]:
        """Remove domains and directories of dead owners; their names."""
        return await self.backend.sweep()

    async def sweep_quietly(self) -> None:
        """The sweep of a start: a machine without libvirt has nothing to sweep."""
        try:
            if removed := await self.sweep():
                log.warning("swept what a dead process left: %s", ", ".join(removed))
        except VoidboxError as e:
            log.info("nothing swept: %s", e)

    def stop(self) -> None:
        """Begin the end; returns at once."""
        self.stopping.set()

    async def wind_down(self) -> None:
        """Cancel runs and wait, bounded, until their boxes are closed and their last events written."""
        await self.runner.shutdown(SHUTDOWN_S)
        self.stopped.set()

    async def leave_when_idle(self, idle_s: float) -> None:
        """Return once nothing has happened for `idle_s` seconds, or the end was asked for."""
        while not self.stopping.is_set():
            await self.until(self.stopping, min(max(idle_s / 4, 0.05), 15))
            if self.busy:
                self.activity.touch()
            elif self.activity.idle_s >= idle_s:
                log.info("idle for %g s, leaving", idle_s)
                self.stop()

    async def until(self, event: anyio.Event, seconds: float) -> None:
        """Wait for `event` or for everything to have stopped, at most `seconds`."""
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:

                async def first(which: anyio.Event) -> None:
                    await which.wait()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(first, event)
                tasks.start_soon(first, self.stopped)


async def _bury(store: Store, journal: Journal) -> None:
    """Put the runs of a daemon that died to rest; what they had streamed is kept, and they can be resumed."""
    trouble = Trouble(
        kind="provider",
        message="The daemon that ran this ended abruptly; what was finished is kept, `voidbox resume` goes on.",
        cause="daemon-died",
    )
    for record in await store.list_runs(limit=5000, unfinished=True):
        if record.state != "interrupted":
            log.warning("%s was in progress when a daemon died", record.id)
            try:
                await interrupt(journal, record, trouble)
            except VoidboxError as e:  # one bad run keeps nobody else from working
                log.error("%s cannot be put to rest: %s", record.id, e)


def _free_mb(backend: Backend) -> int | None:
    free = available_memory_mb()
    return None if free is None else free + backend.spare_mb
