"""``voidbox dashboard``: cost over time, runs side by side and telemetry, as a page in a browser."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from voidbox_lab.cli.output import Json, json_line, out, remark, working
from voidbox_lab.settings import Settings


def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")] = True,
    unix_socket: Annotated[
        Path | None,
        typer.Option(help="Listen there instead, for a proxy in front that knows its users.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Serve a page with cost over time, runs side by side and telemetry, until interrupted.

    Its URL, the one line on standard output, holds a token: who has it sees all runs of this user.
    """
    # From this process, whatever the environment says to other programs of Bokeh's: nothing comes from elsewhere.
    os.environ["BOKEH_RESOURCES"] = "server"
    # A page that was closed, a path that is not there: nothing of them is for the terminal.
    for noisy in ("bokeh", "tornado.access"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with working("starting"):
        # Panel takes a second, which no other subcommand should pay.
        from voidbox_lab.widgets.dashboards import serve

    settings = Settings.from_env().prepare()
    with ExitStack() as stack:

        def ready(url: str) -> None:
            if json:
                out.file.write(json_line({"url": url}) + "\n")
            else:
                out.print(f"dashboard at {url}", markup=False)
            out.file.flush()
            if unix_socket is not None:
                return
            if browser and not stack.enter_context(serve.opened(url, settings)):
                remark("There is no browser here; open the URL in one on this machine.")
            remark("Ctrl-C ends it.")

        serve.serve(settings, port=port, unix_socket=unix_socket, ready=ready)
