"""``voidbox daemon`` and ``voidbox gc``: the process that owns boxes, and what dead ones left behind."""

from __future__ import annotations

from typing import Annotated

import httpx
import typer

from voidbox_lab.cli.output import ago, out, print_json
from voidbox_lab.client import Client
from voidbox_lab.errors import ProviderError
from voidbox_lab.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The daemon: starts by itself, leaves when idle.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def gc(json: Json = False) -> None:
    """Remove domains, processes and directories whose owner is dead."""
    with Client() as client:
        removed = client.gc()
    if json:
        print_json({"removed": removed})
    else:
        out.print(f"removed {', '.join(removed)}" if removed else "nothing to remove", markup=False)


@app.command()
def start() -> None:
    """Start the daemon if none runs."""
    with Client() as client:
        health = client.health()
    out.print(f"daemon {health.pid} on {client.settings.socket}", markup=False)


@app.command()
def status(json: Json = False) -> None:
    """Say whether a daemon runs, and what it does."""
    settings = Settings.from_env()
    log = settings.data / "logs" / "daemon.log"
    try:
        with Client(settings, start=False) as client:
            health = client.health()
    except (ProviderError, httpx.TransportError):
        if json:
            print_json({"running": False, "socket": str(settings.socket), "log": str(log)})
        else:
            out.print(f"no daemon on {settings.socket}, log in {log}", markup=False)
        return
    if json:
        print_json(
            {"running": True, "socket": str(settings.socket), "log": str(log)} | health.model_dump(mode="json")
        )
    else:
        out.print(
            f"daemon {health.pid}, version {health.version}, up {ago(health.uptime_s)}, {health.runs} runs, "
            f"{health.boxes} boxes, keys: {', '.join(health.keys) or 'none'}, log in {log}",
            markup=False,
        )


@app.command()
def stop(
    if_idle: Annotated[bool, typer.Option("--if-idle", help="Refuse if something runs.")] = False,
) -> None:
    """End the daemon, cancelling what runs."""
    try:
        with Client(start=False) as client:
            client.shutdown(if_idle=if_idle)
    except (ProviderError, httpx.TransportError):
        out.print("no daemon runs")
    else:
        out.print("the daemon ends")
