"""Stages on the workers of a Dask cluster: the scheduler finds the room, this follows what happens there.

Dask's own way with a lost worker, giving its tasks to another one, is kept and watched: each new attempt is seen
(`flight`), said in the run's events and counted. See docs/cluster.md for the whole.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup

from voidbox_lab.agents import Adapter
from voidbox_lab.box.trouble import first_error
from voidbox_lab.cluster.flight import Flight, News
from voidbox_lab.cluster.follow import Follow
from voidbox_lab.cluster.link import Link
from voidbox_lab.cluster.members import Cluster
from voidbox_lab.cluster.ticket import (
    MEMORY,
    VCPUS,
    Kind,
    Ticket,
    resources,
    ticket_of,
    topic_of,
)
from voidbox_lab.engine.admission import TELL_S, WAIT_S
from voidbox_lab.engine.cache import Identify
from voidbox_lab.engine.executor import Admitted
from voidbox_lab.engine.job import Emit, Moved, Result, StageJob
from voidbox_lab.engine.ports import Box
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.spec import InputFile, Stage, digest_bytes
from voidbox_lab.spec.events import Queued

NO_WORKER_S = 60.0
"""How long a stage waits while no worker is large enough."""
QUIET_S = 1.0
"""A wait shorter than this is not told."""
END_S = 28.0
"""What an attempt gets to close its box when it is to end; then its worker's lease, or next start, does it."""
CANCEL_S = 5.0

log = logging.getLogger(__name__)


class DaskExecutor:
    """An `Executor` (see `voidbox_lab.engine.executor`) over a Dask cluster. Made by `open`."""

    def __init__(
        self, address: str, adapter: Callable[[str], Adapter], identify: Identify, tasks: TaskGroup
    ) -> None:
        self._adapter, self._identify, self._tasks = adapter, identify, tasks
        self._daemon = secrets.token_hex(8)
        self._cluster = Cluster(address, topic=topic_of(self._daemon), told=self._told, lost=self._scheduler_lost)
        self._flights: dict[str, Flight] = {}
        self._links: dict[str, Link] = {}
        self._held: dict[str, anyio.Event] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls, address: str, adapter: Callable[[str], Adapter], identify: Identify
    ) -> AsyncIterator[DaskExecutor]:
        """An executor for the cluster of the scheduler at `address`, for the time of the context.

        It opens without a scheduler too, says in the log what is wrong, and goes on trying.
        """
        async with anyio.create_task_group() as tasks:
            self = cls(address, adapter, identify, tasks)
            await self._cluster.connect()
            if self._cluster.trouble is not None:
                log.error("%s", self._cluster.trouble)
            tasks.start_soon(self._cluster.keep)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()

    def check(self, stage: Stage) -> None:
        """See `Executor`. `ProviderError`, cause ``cluster``, if the cluster cannot be used now."""
        box = stage.box
        self._adapter(box.adapter)
        if box.volumes:
            raise UserError(
                f"Stage {box.name!r} has a volume, which lies on one host; run it without VOIDBOX_EXECUTOR.",
                cause="volume",
            )
        if box.mounts:
            raise UserError(
                f"Stage {box.name!r} has a folder of this host, which a worker does not see; run it without "
                "VOIDBOX_EXECUTOR, or give it the files as inputs.",
                cause="mount",
            )
        self._cluster.check(f"Stage {box.name!r}", resources(box))

    async def run(self, job: StageJob, emit: Emit, moved: Moved, admitted: Admitted) -> Result:
        """See `Executor`."""
        began = False

        async def once() -> None:
            nonlocal began
            if not began:
                began = True
                await admitted()

        identity = await self._identity(job)
        follow = Follow(job, emit, moved, once)
        while True:
            while (held := self._held.get(job.run)) is not None:
                await held.wait()
            answer = await self._send(Flight(self._ticket(job, identity)), follow)
            if answer is not None:
                return answer

    def hold(self, run: str, held: bool) -> None:
        """See `Executor`. What a worker is about to begin is taken back, and sent again when the run goes on."""
        if held:
            self._held.setdefault(run, anyio.Event())
        elif (event := self._held.pop(run, None)) is not None:
            event.set()

    def box(self, run: str, stage: str) -> Box | None:
        """None: it is on another host."""
        return None

    async def _identity(self, job: StageJob) -> str | None:
        try:
            return await self._identify(job.box)
        except VoidboxError as e:
            log.info("this daemon does not know what %s runs on: %s", job.box.name, e)
            return None

    def _ticket(self, job: StageJob, identity: str | None) -> Ticket:
        upstream = {name: _file(text) for name, text in job.upstream.items()}
        return Ticket(
            id=secrets.token_hex(8),
            daemon=self._daemon,
            run=job.run,
            stage=job.stage,
            files=dict(job.files),
            upstream=upstream,
            identity=identity,
            traceparent=job.traceparent,
        )

    async def _send(self, flight: Flight, follow: Follow) -> Result | None:
        """One ticket, to its answer; None if it must be sent again."""
        from voidbox_lab.cluster.plugin import begin

        ticket, job = flight.ticket, follow.job
        future = self._cluster.client.submit(
            begin,
            ticket.model_dump_json(),
            key=f"voidbox-{ticket.id}",
            resources=resources(job.box),
            retries=0,
            pure=False,
        )
        self._flights[ticket.id] = flight
        answer = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_watch, flight, future)
                tasks.start_soon(self._wait, flight, follow)
                try:
                    answer = await follow.news(flight, self._supply, tasks)
                finally:
                    with CancelScope(shield=True):
                        await self._end(flight, follow)
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        finally:
            self._flights.pop(ticket.id, None)
            flight.close()
            self._tasks.start_soon(_let_go, future)
        return answer

    async def _end(self, flight: Flight, follow: Follow) -> None:
        """See that nothing of `flight` is at work any more; what it says meanwhile still counts. Bounded."""
        if flight.attempt is None or flight.link is None:
            return
        await flight.link.leave([flight.attempt])
        with anyio.move_on_after(END_S) as scope:
            while flight.attempt is not None or flight.waiting:
                news = await flight.news.receive()
                with suppress(Exception):
                    await follow.late(news)
        if scope.cancelled_caught:
            log.error("%s did not end within %g s; its worker ends it", flight.attempt, END_S)

    async def _supply(self, flight: Flight, job: StageJob, digests: list[str]) -> None:
        """Send what an attempt lacks."""
        link = flight.link
        texts = {f.digest: job.upstream[name] for name, f in flight.ticket.upstream.items()}
        paths = {**job.blobs, **{f.digest: job.inputs[name] for name, f in job.files.items()}}
        try:
            for digest in digests:
                if link is None or flight.link is not link:
                    return
                source = texts[digest].encode(errors="replace") if digest in texts else paths.get(digest)
                if source is None:
                    raise ProviderError(
                        f"{link.host} asked for {digest[:80]}, which is no input.", cause="protocol"
                    )
                await link.give(digest, source)
        except OSError as e:
            log.warning("%s got no inputs: %s", flight.attempt, e)
            if flight.link is link:
                flight.tell(
                    News("failed", error=ProviderError(f"Inputs could not be sent: {e}.", cause="cluster"))
                )
        except VoidboxError as e:
            flight.tell(News("failed", error=e))

    async def _wait(self, flight: Flight, follow: Follow) -> None:
        """Tell why a stage has not begun, now and then, and end a wait that is in vain."""
        needs, address = resources(follow.job.box), self._cluster.address
        waited = in_vain = 0.0
        tell_at, told = QUIET_S, ""
        while True:
            await anyio.sleep(QUIET_S)
            if flight.attempt is not None:
                waited = in_vain = 0.0
                continue
            waited += QUIET_S
            fitting = self._cluster.fitting(needs)
            in_vain = 0.0 if fitting else in_vain + QUIET_S
            if in_vain > NO_WORKER_S:
                said = f"No worker of {address} is large enough now; start one with `voidbox worker {address}`."
                flight.tell(News("failed", error=ProviderError(said, cause="cluster")))
            if waited > WAIT_S:
                flight.tell(News("failed", error=_no_room(follow.job)))
            if waited >= tell_at:
                tell_at += TELL_S
                ahead = self._ahead(flight)
                words = (
                    f"needs {needs[MEMORY]:g} MiB and {needs[VCPUS]:g} vCPUs, {fitting} workers are "
                    f"large enough for it, {ahead} in front"
                )
                if words != told:
                    told = words
                    await follow.emit(Queued(ahead=ahead, message=words))

    def _ahead(self, flight: Flight) -> int:
        ahead = 0
        for other in self._flights.values():
            if other is flight:
                break
            ahead += other.attempt is None
        return ahead

    def _told(self, said: dict[str, Any]) -> None:
        """A worker has begun something of ours: it is to be asked."""
        worker, host = str(said.get("worker")), str(said.get("host"))[:255]
        if (link := self._links.get(worker)) is None:
            link = self._links[worker] = Link(self._cluster, worker, host, self._daemon, self._route)
            self._tasks.start_soon(self._ask, link)
        link.wanted = time.monotonic()

    async def _ask(self, link: Link) -> None:
        try:
            await link.serve(lambda: sum(f.waiting for f in self._flights.values()), self._alive)
        except OSError as e:
            log.warning("the worker %s on %s is lost: %s", link.worker, link.host, e)
        except Exception:
            log.exception("the worker %s on %s said what cannot be", link.worker, link.host)
        finally:
            del self._links[link.worker]
            self._alive(link, set())

    def _route(self, link: Link, attempt: str, number: int, kind: Kind, data: str) -> bool:
        flight = self._flights.get(ticket_of(attempt))
        if flight is None:
            return False
        if kind == "begun" and flight.ticket.run in self._held:
            flight.tell(News("held"))
            return False
        return flight.hear(link, attempt, number, kind, data)

    def _alive(self, link: Link, attempts: set[str]) -> None:
        """Whatever is not there any more, and had not ended, is lost."""
        for flight in self._flights.values():
            if flight.link is link and flight.attempt not in attempts:
                flight.lose()

    def _scheduler_lost(self) -> None:
        for flight in self._flights.values():
            said = f"The Dask scheduler {self._cluster.address} was lost while the stage was there."
            flight.tell(News("failed", error=ProviderError(said, cause="cluster")))
            flight.give_up()  # nothing more is heard of it: its worker ends it


async def _watch(flight: Flight, future: Any) -> None:
    """What Dask says of the ticket. Its success says nothing: the attempt's own last word does."""
    try:
        await future
    except Exception as e:  # KilledWorker, a cancelled future, what `begin` raised
        flight.tell(News("failed", error=e))


async def _let_go(future: Any) -> None:
    """Tell the scheduler that nobody wants this any more."""
    with CancelScope(shield=True), suppress(Exception), anyio.move_on_after(CANCEL_S):
        await future.cancel()


def _file(text: str) -> InputFile:
    data = text.encode(errors="replace")
    return InputFile(digest=digest_bytes(data), size=len(data))


def _no_room(job: StageJob) -> LimitExceeded:
    return LimitExceeded(
        f"Stage {job.box.name!r} found no room in the cluster within {WAIT_S:g} s; start more workers.",
        limit="time",
        value=WAIT_S,
        unit="s",
        cause="no-room",
    )
