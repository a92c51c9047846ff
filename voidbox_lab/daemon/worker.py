"""This host as a worker of a Dask cluster, with real boxes: for ``voidbox worker``, and as a Dask preload module.

Imports `distributed`; nothing of the daemon imports this.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from distributed import Worker

from voidbox_lab.cluster.plugin import NAME, StationPlugin
from voidbox_lab.cluster.station import MakeBackend
from voidbox_lab.cluster.ticket import MEMORY, VCPUS
from voidbox_lab.daemon.live import live_backend
from voidbox_lab.engine import Capacity
from voidbox_lab.errors import ProviderError
from voidbox_lab.settings import Settings

CONNECT_S = 30.0
CLOSE_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Joined:
    """A worker of a cluster."""

    worker: str
    """Its address."""
    memory_mb: int
    vcpus: int


async def dask_setup(worker: Worker) -> None:
    """Called by ``dask worker … --preload voidbox_lab.daemon.worker``."""
    await worker.plugin_add(StationPlugin(live_backend, Settings.from_env()), name=NAME, catch_errors=False)


async def work(
    scheduler: str,
    settings: Settings,
    memory_mb: int | None = None,
    vcpus: int | None = None,
    make_backend: MakeBackend = live_backend,
    joined: Callable[[Joined], None] = lambda _joined: None,
) -> None:
    """Be a worker until SIGTERM or SIGINT, or until the scheduler goes.

    Args:
        memory_mb: MiB for boxes, with this host's share of each; None: as a daemon would give them.
        vcpus: for boxes; None: as a daemon would.
        joined: told once the scheduler counts this worker among its own.

    There is no nanny: one would give a worker that ends 10 s, and then kill it with its boxes open.

    Raises:
        ProviderError: cause ``cluster``: the scheduler cannot be reached within 30 s, or is lost.
    """
    own = Capacity.of_host()
    capacity = Capacity(memory_mb or own.memory_mb, vcpus or own.vcpus)
    worker = Worker(
        scheduler,
        # A stage has a vCPU at least, so the threads are never what it waits for.
        nthreads=capacity.vcpus,
        resources={MEMORY: capacity.memory_mb, VCPUS: capacity.vcpus},
        plugins=(StationPlugin(make_backend, settings),),
        # It counts this process alone, and boxes are others.
        memory_limit=0,
        local_directory=str(settings.prepare().runtime),
        dashboard=False,
        death_timeout=CONNECT_S,
    )
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        ended = False
        try:
            try:
                await worker
            except (OSError, TimeoutError) as e:
                raise ProviderError(
                    f"The Dask scheduler {scheduler} cannot be reached ({e}); start it with `dask scheduler`.",
                    cause="cluster",
                ) from e
            joined(Joined(worker.address, capacity.memory_mb, capacity.vcpus))
            async with anyio.create_task_group() as tasks:

                async def told() -> None:
                    nonlocal ended
                    async for _ in signals:
                        ended = True
                        tasks.cancel_scope.cancel()
                        return

                tasks.start_soon(told)
                await worker.finished()  # type: ignore[no-untyped-call]
                tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(CLOSE_S, shield=True):
                await worker.close(timeout=30)
    if not ended:
        raise ProviderError(
            f"The Dask scheduler {scheduler} was lost; start it again, then this.", cause="cluster"
        )
