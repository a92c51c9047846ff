"""``voidbox worker``: this host runs stages for daemons that use a Dask cluster."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from voidbox_lab.errors import Unavailable
from voidbox_lab.settings import Settings


def worker(
    scheduler: Annotated[
        str, typer.Argument(metavar="SCHEDULER", help="The scheduler, tcp://HOST:PORT or tls://….")
    ],
    memory_mb: Annotated[
        int | None, typer.Option("--memory-mb", min=512, help="MiB for boxes; by default 80 % of this host's.")
    ] = None,
    vcpus: Annotated[
        int | None,
        typer.Option("--vcpus", min=1, max=4096, help="vCPUs for boxes; by default two for a processor."),
    ] = None,
) -> None:
    """Run stages for a Dask cluster, in boxes of this host, until interrupted.

    Model keys are this process's environment. Whoever reaches the scheduler can run code as this user: see
    docs/cluster.md.
    """
    import anyio

    try:
        from voidbox_lab.daemon.worker import work
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "distributed":
            raise
        raise Unavailable(
            "`voidbox worker` needs the package distributed; run `pip install 'voidbox-lab[dask]'`."
        ) from e
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "distributed.core"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    anyio.run(work, scheduler, Settings.from_env(), memory_mb, vcpus)
