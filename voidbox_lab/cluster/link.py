"""One worker as a daemon sees it: asked again and again what its attempts say, until it is idle or lost.

Why the daemon asks, and is not told: a reply is as large as the daemon takes, nothing piles up in the scheduler,
what got lost is asked for again, and a worker that is asked knows that its daemon lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio import to_thread

from voidbox_lab.cluster.members import Cluster
from voidbox_lab.cluster.ticket import CALL_S, CHUNK_BYTES, EXCHANGE_S, Kind
from voidbox_lab.errors import VoidboxError, from_dict

IDLE_S = 10.0
"""A worker without attempts is asked for so long yet."""
LOST_S = 12.0
"""A worker that its scheduler still counts, and that has not answered for so long, is lost."""
RETRY_S = 0.3
MAX_WAITING = 10_000
"""Messages that wait for their stages; while there are more, no more are asked for."""

Routed = Callable[["Link", str, int, Kind, str], bool]
"""Takes a message; False if nobody wants that attempt."""


class Link:
    """Asks one worker. `serve` returns when it need not be asked any more."""

    def __init__(self, cluster: Cluster, worker: str, host: str, daemon: str, route: Routed) -> None:
        self._cluster, self.worker, self.host, self._daemon, self._route = cluster, worker, host, daemon, route
        self._confirmed: dict[str, int] = {}
        self.wanted = time.monotonic()
        """When there was last something for it to do."""
        self._sending: dict[str, anyio.Lock] = {}

    async def serve(self, waiting: Callable[[], int], alive: Callable[[Link, set[str]], None]) -> None:
        """Ask until idle.

        Args:
            waiting: how many messages wait for their stages.
            alive: told after each reply which attempts are on their way here.

        Raises:
            OSError: the worker is lost.
        """
        heard = time.monotonic()
        while True:
            try:
                reply = await self._cluster.call(
                    self.worker, "exchange", EXCHANGE_S + CALL_S, daemon=self._daemon, confirmed=self._confirmed
                )
            except OSError:
                if not await self._cluster.has(self.worker) or time.monotonic() - heard > LOST_S:
                    raise
                await anyio.sleep(RETRY_S)
                continue
            heard = time.monotonic()
            if not reply["valid"]:
                continue
            unwanted = set()
            for attempt, number, kind, data in reply["messages"]:
                if number <= self._confirmed.get(attempt, 0):
                    continue  # it came before, and the word that it did was lost
                if self._route(self, attempt, number, kind, data):
                    self._confirmed[attempt] = number
                else:
                    unwanted.add(attempt)
            if unwanted:
                await self.leave(sorted(unwanted))
            living = set(reply["alive"])
            alive(self, living)
            self._confirmed = {a: n for a, n in self._confirmed.items() if a in living}
            if living:
                self.wanted = time.monotonic()
            elif time.monotonic() - self.wanted > IDLE_S:
                return
            while waiting() > MAX_WAITING:  # noqa: ASYNC110 - a brake that is hardly ever used
                await anyio.sleep(0.05)

    async def leave(self, attempts: list[str]) -> None:
        """Have attempts ended; returns before they are. What is not heard is ended for want of a confirmation."""
        try:
            await self._cluster.call(self.worker, "leave", CALL_S, attempts=attempts)
        except OSError:
            return

    async def give(self, digest: str, source: Path | bytes) -> None:
        """Send a file, piece by piece, unless it is there already.

        Raises:
            OSError: the worker does not answer, or the file cannot be read.
            VoidboxError: the worker does not take it.
        """
        lock = self._sending.setdefault(digest, anyio.Lock())
        try:
            async with lock:
                offset = 0
                while True:
                    data, last = await to_thread.run_sync(_piece, source, offset)
                    answer = await self._cluster.call(
                        self.worker,
                        "give",
                        CALL_S * 3,
                        daemon=self._daemon,
                        digest=digest,
                        offset=offset,
                        data=data,
                        last=last,
                    )
                    if answer["error"] is not None:
                        error: VoidboxError = from_dict(dict(answer["error"]))
                        raise error
                    if answer["whole"]:
                        return
                    offset += len(data)
        finally:
            if not lock.statistics().tasks_waiting:
                self._sending.pop(digest, None)


def _piece(source: Path | bytes, offset: int) -> tuple[bytes, bool]:
    """The piece at `offset`, and whether it is the last."""
    if isinstance(source, bytes):
        data = source[offset : offset + CHUNK_BYTES]
        return data, offset + len(data) >= len(source)
    with source.open("rb") as file:
        file.seek(offset)
        data = file.read(CHUNK_BYTES)
        return data, not file.read(1)
