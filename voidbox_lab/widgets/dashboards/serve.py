"""The dashboard as a page of its own: on a loopback port, or on a UNIX socket for a proxy that knows its user.

Every user of a machine reaches its loopback ports, and a page on the web can make a browser ask there. So each
path of the server, that of its WebSocket included, begins with a token made at its start, which its URL alone
holds; the WebSocket takes pages of this server's own address alone (Bokeh's origin check). A UNIX socket's guard
is its directory, which is the user's; the proxy in front checks users and origins, as jupyter-server-proxy does.
"""

from __future__ import annotations

import base64
import errno
import os
import secrets
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import panel as pn
from tornado.ioloop import IOLoop

from voidbox_lab.errors import UserError
from voidbox_lab.settings import Settings
from voidbox_lab.widgets.dashboards import look
from voidbox_lab.widgets.dashboards.page import TICK_MS, Page
from voidbox_lab.widgets.dashboards.source import Runs

HOST = "127.0.0.1"
"""Not a name: what a name means, such as localhost, others may answer for."""
TOKEN_BYTES = 32
TRIES = 5
UNUSED_S = 15.0
"""A page that was closed is forgotten after so long."""


def serve(
    settings: Settings,
    *,
    port: int = 0,
    unix_socket: Path | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the dashboard until interrupted (SIGINT, SIGTERM); in a thread, for ever. `ready` is called with its
    URL, which is secret.

    Args:
        port: on 127.0.0.1; 0 takes any that is free.
        unix_socket: serve there instead, without a token; its directory must be this user's alone.

    Raises:
        UserError: the port or the socket cannot be had.
        VoidboxError: there is no daemon, and none can be started.
    """
    runs = Runs(settings)
    runs.open()
    token = secrets.token_urlsafe(TOKEN_BYTES) if unix_socket is None else ""
    server = _bound(lambda: _page(runs), port, unix_socket, token)
    loop = IOLoop.current()
    server.start()
    with _stopped_by(loop, signal.SIGINT, signal.SIGTERM):
        try:
            ready(f"http://{HOST}:{server.port}/{token}/" if unix_socket is None else str(unix_socket))
            loop.start()
        finally:
            server.stop()
            runs.close()


@contextmanager
def opened(url: str, settings: Settings) -> Iterator[bool]:
    """Show `url` in a browser, by way of a file of this user's: arguments of programs can be seen by all.

    Gives whether there is a browser. The file goes at the end.
    """
    path = settings.runtime / f"dashboard-{os.getpid()}-{secrets.token_hex(4)}.html"
    path.touch(0o600)
    path.write_text(f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={url}">\n')
    try:
        yield webbrowser.open(path.as_uri())
    finally:
        path.unlink(missing_ok=True)


def _page(runs: Runs) -> Any:
    """A page for one reader."""
    page = Page(runs)
    template = pn.Template((look.HERE / "templates" / "page.html.j2").read_text(encoding="utf-8"))
    template.add_variable("page_css", look.css("page"))
    template.add_variable("icon", base64.b64encode((look.HERE / "static" / "icon.svg").read_bytes()).decode())
    template.add_panel("dashboard", page.view)
    pn.state.add_periodic_callback(page.tick, period=TICK_MS)
    return template


def _bound(page: Callable[[], Any], port: int, unix_socket: Path | None, token: str) -> Any:
    common: dict[str, Any] = {
        "title": "voidbox dashboard",
        "ico_path": "none",  # the one path that Bokeh serves without the token before it
        # What a proxy or another server on this host put into cookies and headers is not for the page.
        "include_headers": ["Host"],
        "include_cookies": [],
        "unused_session_lifetime_milliseconds": int(UNUSED_S * 1000),
        "check_unused_sessions_milliseconds": 5000,
    }
    if unix_socket is not None:
        # Whose pages may connect is for the proxy to say, which has the name that browsers know.
        try:
            return pn.io.server.get_server(page, unix_socket=str(unix_socket), websocket_origin=["*"], **common)
        except (OSError, ValueError) as e:
            raise UserError(f"The dashboard cannot listen on {unix_socket} ({e}); choose another path.") from e
    for left in reversed(range(TRIES)):
        chosen = port or _free()
        origins = [f"{HOST}:{chosen}"]
        try:
            return pn.io.server.get_server(
                page, port=chosen, address=HOST, prefix=token, websocket_origin=origins, **common
            )
        except OSError as e:
            # Somebody else may have taken a free one a moment ago.
            if port or not left or e.errno != errno.EADDRINUSE:
                raise UserError(
                    f"The dashboard cannot listen on {HOST}:{chosen} ({e.strerror}); choose another --port."
                ) from e
    raise AssertionError


def _free() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


@contextmanager
def _stopped_by(loop: IOLoop, *signals: signal.Signals) -> Iterator[None]:
    """Each of them ends `loop`. Only the main thread can have it so; elsewhere nothing does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda *_: loop.add_callback_from_signal(loop.stop)) for number in signals
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
