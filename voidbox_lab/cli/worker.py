"""``voidbox worker``: this host runs stages for daemons that use a Dask cluster."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from voidbox_lab.cli.output import Json, json_line, out
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
    json: Json = False,
) -> None:
    """Run stages for a Dask cluster, in boxes of this host, until interrupted.

    Standard output has one line, of JSON with --json, once the scheduler counts it among its workers. Model keys
    are this process's environment. Whoever reaches the scheduler can run code as this user: see docs/cluster.md.
    """
    import anyio

    try:
        from voidbox_lab.daemon.worker import Joined, work
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "distributed":
            raise
        raise Unavailable(
            "`voidbox worker` needs the package distributed; run `pip install 'voidbox-lab[dask]'`."
        ) from e
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "distributed.core"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    def joined(worker: Joined) -> None:
        if json:
            out.file.write(json_line(asdict(worker)) + "\n")
            out.file.flush()
        else:
            what = f"{worker.memory_mb} MiB and {worker.vcpus} vCPUs for boxes"
            out.print(f"worker {worker.worker} of {scheduler}: {what}", markup=False)

    anyio.run(partial(work, scheduler, Settings.from_env(), memory_mb, vcpus, joined=joined))
