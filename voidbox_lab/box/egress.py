"""A box's way out besides its model, seen from the box: its socket, its port, and what programs are told of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from voidbox_lab.wire.protocol import EGRESS_PORT

SOCKET = "egress.sock"
"""Its name in the box's runtime directory: whoever comes by it is that box."""
Close = Callable[[], Awaitable[None]]
OpenEgress = Callable[[Path], Awaitable[Close]]
"""Serves the box's way out at a UNIX socket that it makes, until what it returns is called."""

_URL = f"http://127.0.0.1:{EGRESS_PORT}"
_NOT_BY_IT = "127.0.0.1,localhost,::1"
"""The model's gateway is at 127.0.0.1, and so is whatever the agent itself serves."""
ENVIRONMENT = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), _URL),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), _NOT_BY_IT),
}
"""By these most programs find a proxy; curl reads http_proxy in small letters alone."""
