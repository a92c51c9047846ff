"""``voidbox daemon`` and ``voidbox gc``: the process that owns boxes, and what dead ones left behind."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import typer

from voidbox_lab.cli.output import Json, ago, out, print_json
from voidbox_lab.cli.which import connected
from voidbox_lab.client import Client
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.settings import Address, Settings
from voidbox_lab.spec.api import Health

app = typer.Typer(no_args_is_help=True, help="The daemon: starts by itself, leaves when idle.")


def gc(json: Json = False) -> None:
    """Remove domains, processes and directories whose owner is dead."""
    with connected() as client:
        removed = client.gc()
    if json:
        print_json({"removed": removed})
    else:
        out.print(f"removed {', '.join(removed)}" if removed else "nothing to remove", markup=False)


@app.command()
def start(
    tcp: Annotated[
        str | None,
        typer.Option(
            "--tcp",
            metavar="HOST:PORT",
            help="Listen there too, for whoever has the token; a port alone is one of 127.0.0.1, 0 any.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Start the daemon if none runs."""
    settings = Settings.from_env()
    if tcp is not None:
        if settings.daemon is not None:
            raise UserError(
                "--tcp starts a daemon here, and VOIDBOX_DAEMON names another one; unset VOIDBOX_DAEMON."
            )
        settings = replace(settings, tcp=Address.parse(tcp, "--tcp"))
    with connected(settings) as client:
        health = client.health()
    if json:
        print_json(_running(settings, health))
    else:
        out.print(f"daemon {health.pid} on {_where(settings, health)}", markup=False)
    if settings.tcp is not None and settings.daemon is None and not _serves(health, settings.tcp):
        raise UserError(
            f"The daemon that runs does not listen on {settings.tcp}; end it with `voidbox daemon stop`, "
            "then start it again."
        )


@app.command()
def token(json: Json = False) -> None:
    """Print the token that TCP clients need, made if there is none; for VOIDBOX_TOKEN on their side."""
    from voidbox_lab.daemon import token as tokens

    found = tokens.token(Settings.from_env().prepare())
    if json:
        print_json({"token": found})
    else:
        sys.stdout.write(found + "\n")


@app.command()
def openapi(json: Json = False) -> None:
    """Print the API's OpenAPI document, which is JSON anyway; needs no daemon."""
    # Imported late: FastAPI and the daemon's modules take half a second.
    from voidbox_lab.daemon.app import document

    print_json(document())


@app.command()
def status(json: Json = False) -> None:
    """Say whether a daemon runs, and what it does."""
    settings = Settings.from_env()
    try:
        with Client(settings, start=False) as client:
            health = client.health()
    except (ProviderError, httpx.TransportError):
        if json:
            print_json({"running": False} | _place(settings))
        else:
            out.print(f"no daemon on {_where(settings)}{_log(settings)}", markup=False)
        return
    if json:
        print_json(_running(settings, health))
    else:
        out.print(
            f"daemon {health.pid}, version {health.version}, up {ago(health.uptime_s)}, {health.runs} runs, "
            f"{health.boxes} boxes, keys: {', '.join(health.keys) or 'none'}, "
            f"on {_where(settings, health)}{_log(settings)}",
            markup=False,
        )


@app.command()
def stop(
    if_idle: Annotated[bool, typer.Option("--if-idle", help="Refuse if something runs.")] = False,
    json: Json = False,
) -> None:
    """End the daemon, cancelling what runs."""
    ended = True
    try:
        with Client(start=False) as client:
            client.shutdown(if_idle=if_idle)
    except (ProviderError, httpx.TransportError):
        ended = False
    if json:
        print_json({"ends": ended})
    else:
        out.print("the daemon ends" if ended else "no daemon runs")


def _running(settings: Settings, health: Health) -> dict[str, Any]:
    return {"running": True} | _place(settings) | health.model_dump(mode="json")


def _where(settings: Settings, health: Health | None = None) -> str:
    if settings.daemon is not None:
        return settings.daemon
    return f"{settings.socket}" + (f" and {health.tcp}" if health and health.tcp else "")


def _log(settings: Settings) -> str:
    """What a line about the daemon ends with: a daemon elsewhere has its log there."""
    return "" if settings.daemon else f", log in {settings.data / 'logs' / 'daemon.log'}"


def _place(settings: Settings) -> dict[str, str]:
    if settings.daemon is not None:
        return {"url": settings.daemon}
    return {"socket": str(settings.socket), "log": str(settings.data / "logs" / "daemon.log")}


def _serves(health: Health, asked: Address) -> bool:
    """Whether the daemon listens where it was asked to; names and port 0 stand for what became of them."""
    return health.tcp is not None and asked.port in {0, urlsplit(health.tcp).port}
