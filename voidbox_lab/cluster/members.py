"""The connection to a Dask scheduler: kept up, with what its workers say they have room for.

Not for stages (`executor`), nor for what is said to one worker (`link`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio

from voidbox_lab.cluster.ticket import MEMORY, VCPUS, declared
from voidbox_lab.engine.admission import BOX_OVERHEAD_MB
from voidbox_lab.errors import ProviderError, UserError

CONNECT_S = 5.0
"""Bound on connecting, and on asking for the workers."""
RETRY_S = 3.0
"""How long after a connection that failed the next one is tried."""
REFRESH_S = 2.0
"""How often the workers are asked for."""
CLOSE_S = 5.0

log = logging.getLogger(__name__)


class Cluster:
    """Where stages go. `keep` must run; until it is connected, `trouble` says what is wrong."""

    def __init__(
        self, address: str, *, topic: str, told: Callable[[dict[str, Any]], None], lost: Callable[[], None]
    ):
        self.address = address
        self._topic, self._told, self._lost = topic, told, lost
        self._client: Any = None
        self._workers: dict[str, dict[str, float] | None] = {}
        self.trouble: str | None = f"The Dask scheduler {address} has not answered yet; try again in a moment."

    async def connect(self) -> None:
        """Try to connect once, bounded; `trouble` is None if it worked."""
        try:
            from distributed import Client
        except ImportError:
            self.trouble = (
                f"VOIDBOX_EXECUTOR=dask:{self.address} needs the package distributed, which is not installed; run "
                "`pip install 'voidbox-lab[dask]'` and start the daemon again."
            )
            return
        client: Any = None
        try:
            with anyio.fail_after(CONNECT_S + 2):
                # Not the process's default client: others' calls of dask in this process are not for this cluster.
                client = Client(  # type: ignore[no-untyped-call]
                    self.address, asynchronous=True, timeout=CONNECT_S, set_as_default=False, name="voidbox"
                )
                await client
                client.subscribe_topic(self._topic, lambda event: self._told(event[1]))
                self._client = client
                await self._refresh()
        except Exception as e:
            self.trouble = (
                f"The Dask scheduler {self.address} cannot be reached ({type(e).__name__}); start it with "
                "`dask scheduler`, or mend VOIDBOX_EXECUTOR."
            )
        else:
            self.trouble = None
        finally:
            if self.trouble is not None and client is not None:
                self._client = None
                with anyio.CancelScope(shield=True):
                    await _close(client)

    async def keep(self) -> None:
        """Stay connected until cancelled, then let go."""
        try:
            while True:
                if self._client is None:
                    await anyio.sleep(RETRY_S)
                    before = self.trouble
                    await self.connect()
                    if self.trouble is None:
                        log.info("connected to %s", self.address)
                    elif self.trouble != before:
                        log.warning("%s", self.trouble)
                    continue
                await anyio.sleep(REFRESH_S)
                try:
                    with anyio.fail_after(CONNECT_S):
                        await self._refresh()
                except Exception as e:
                    log.warning("the scheduler %s is lost: %s", self.address, e)
                    client, self._client, self._workers = self._client, None, {}
                    self.trouble = f"The Dask scheduler {self.address} was lost; start it again, and its workers."
                    # It has forgotten this client, and what it was to do for it.
                    self._lost()
                    await _close(client)
        finally:
            if self._client is not None:
                client, self._client = self._client, None
                with anyio.CancelScope(shield=True):
                    await _close(client)

    @property
    def client(self) -> Any:
        """The `distributed.Client`; `ProviderError`, cause ``cluster``, if there is no connection."""
        if self._client is None or self.trouble is not None:
            raise ProviderError(self.trouble or "The cluster is away.", cause="cluster")
        return self._client

    async def call(self, worker: str, op: str, within_s: float, **what: Any) -> Any:
        """What a worker's station answers; through the scheduler, so that only that one has to be reached.

        Raises:
            OSError: no answer came, or the worker has no station.
        """
        try:
            client = self.client
            with anyio.fail_after(within_s):
                answers = await client.scheduler.broadcast(
                    msg={"op": f"voidbox_{op}", **what}, workers=[worker], on_error="raise"
                )
        except (OSError, ProviderError) as e:
            raise OSError(f"{worker} does not answer: {e}") from e
        except Exception as e:  # whatever the scheduler or the worker raised, pickled by them
            raise OSError(f"{worker} cannot answer: {type(e).__name__}: {e}") from e
        answer = answers.get(worker)
        if not isinstance(answer, Mapping) or answer.get("status") == "uncaught-error":
            raise OSError(f"{worker} has no station")
        return answer

    async def has(self, worker: str) -> bool:
        """Whether the scheduler counts a worker among its own at this moment; True if it does not say."""
        with suppress(Exception):
            with anyio.fail_after(CONNECT_S):
                await self._refresh()
            return worker in self._workers
        return True

    def check(self, what: str, needs: Mapping[str, float]) -> None:
        """That some worker can ever take a stage.

        Raises:
            ProviderError: cause ``cluster``: no connection, or no worker for boxes.
            UserError: no worker is large enough.
        """
        _ = self.client
        most = self._rooms
        if not most:
            raise ProviderError(
                f"No worker of {self.address} says that it has room for boxes; start one on each host with "
                f"`voidbox worker {self.address}`, or give `dask worker` the options `--resources "
                f"'{MEMORY}=8000,{VCPUS}=4' --preload voidbox_lab.daemon.worker`.",
                cause="cluster",
            )
        if not self.fitting(needs):
            memory = max(room[MEMORY] for room in most)
            vcpus = max(room[VCPUS] for room in most)
            raise UserError(
                f"{what} asks for {needs[MEMORY] - BOX_OVERHEAD_MB:g} MiB and {needs[VCPUS]:g} vCPUs; no worker "
                f"of {self.address} has both ({memory - BOX_OVERHEAD_MB:g} MiB at most, {vcpus:g} vCPUs at most)."
            )

    def fitting(self, needs: Mapping[str, float]) -> int:
        """How many workers could take a stage, were they idle."""
        return sum(1 for room in self._rooms if all(room[k] >= n for k, n in needs.items()))

    @property
    def _rooms(self) -> list[dict[str, float]]:
        return [room for room in self._workers.values() if room is not None]

    async def _refresh(self) -> None:
        if self._client is None or self._client.status != "running":
            raise OSError("the connection is down")
        identity = await self._client.scheduler.identity(n_workers=-1)
        self._workers = {address: declared(worker) for address, worker in identity["workers"].items()}


async def _close(client: Any) -> None:
    with suppress(Exception), anyio.move_on_after(CLOSE_S):
        await client.close(timeout=2)
