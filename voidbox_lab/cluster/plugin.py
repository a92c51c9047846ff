"""A `Station` in a Dask worker: one for its life, and the calls that reach it. Imports `distributed`.

Not imported by a daemon, except for `begin`, which it names to the scheduler.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import anyio
from distributed import Worker, WorkerPlugin, get_worker

from voidbox_lab.cluster.station import MakeBackend, Station
from voidbox_lab.cluster.ticket import Ticket, topic_of
from voidbox_lab.errors import ProviderError, VoidboxError
from voidbox_lab.settings import Settings

NAME = "voidbox"
OPEN_S = 60.0
"""Bound on opening the backend: the gateway, no box."""
CLOSE_S = 60.0
"""Bound on closing what is open; the next worker sweeps the rest."""

log = logging.getLogger(__name__)


class StationPlugin(WorkerPlugin):
    """Holds a station from the worker's start to its end."""

    name = NAME

    def __init__(self, make_backend: MakeBackend, settings: Settings) -> None:
        self._make_backend, self._settings = make_backend, settings
        self._keeper: asyncio.Task[None] | None = None

    async def setup(self, worker: Worker) -> None:
        """Open the station; what is wrong with this host is said as the worker starts."""
        self._worker = worker
        self.station = Station(self._make_backend, self._settings, socket.gethostname())
        ready = anyio.Event()
        # A task of its own: what it enters, only it may leave.
        self._keeper = asyncio.create_task(self.station.serve(ready), name="voidbox station")
        opened = asyncio.create_task(ready.wait())
        done, _ = await asyncio.wait({self._keeper, opened}, timeout=OPEN_S, return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        if self._keeper in done:
            self._keeper.result()
        if not done:
            self._keeper.cancel()
            raise ProviderError(f"The backend did not open within {OPEN_S:g} s; see the log.", cause="timeout")
        worker.handlers |= {f"{NAME}_{c.__name__}": c for c in (self.exchange, self.leave, self.give)}

    async def teardown(self, worker: Worker) -> None:
        """Close the station: its boxes, its gateway."""
        if self._keeper is None or self._keeper.done():
            return
        self.station.close()
        _, left = await asyncio.wait({self._keeper}, timeout=CLOSE_S)
        if left:
            log.error("not closed within %g s; the next worker sweeps what is left", CLOSE_S)
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({self._keeper}, timeout=5)

    async def run(self, ticket: str) -> None:
        """The stage of `ticket`, a `Ticket` in JSON, to its end."""
        parsed = Ticket.model_validate_json(ticket)

        def tell(attempt: str) -> None:
            self._worker.log_event(
                topic_of(parsed.daemon),
                {"worker": self._worker.address, "host": self.station.host, "attempt": attempt},
            )

        await self.station.run(parsed, tell)

    async def exchange(self, daemon: str, confirmed: dict[str, int]) -> dict[str, Any]:
        """See `Station.exchange`."""
        return asdict(await self.station.exchange(daemon, confirmed))

    async def leave(self, attempts: list[str]) -> dict[str, Any]:
        """See `Station.leave`."""
        self.station.leave(attempts)
        return {}

    async def give(self, daemon: str, digest: str, offset: int, data: bytes, last: bool) -> dict[str, Any]:
        """See `Station.give`."""
        try:
            return {"whole": await self.station.give(daemon, digest, offset, data, last), "error": None}
        except VoidboxError as e:
            return {"whole": False, "error": e.to_dict()}


async def begin(ticket: str) -> None:
    """What the scheduler runs on a worker that has room: the stage of `ticket`, to its end.

    Raises:
        ProviderError: the worker was not started for boxes.
    """
    worker = get_worker()
    plugin = worker.plugins.get(NAME)
    if not isinstance(plugin, StationPlugin):
        raise ProviderError(
            f"The worker {worker.address} says it has room for boxes and was not started for them; start it with "
            "`voidbox worker`, or with `--preload voidbox_lab.daemon.worker`.",
            cause="cluster",
        )
    await plugin.run(ticket)
