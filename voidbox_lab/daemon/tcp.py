"""The daemon on TCP, where asked for: a bound socket, and what guards every request on it.

There is no TLS here; for other machines, ssh -L or a reverse proxy carries it (docs/api.md).
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from voidbox_lab.daemon import problem, ratelimit
from voidbox_lab.daemon.token import matches
from voidbox_lab.errors import UserError
from voidbox_lab.gateway.serve import serving
from voidbox_lab.settings import Address
from voidbox_lab.spec.api import MAX_SHELL_MESSAGE

_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII)

log = logging.getLogger(__name__)


@asynccontextmanager
async def serving_tcp(app: ASGIApp, sock: socket.socket, name: str, token: str) -> AsyncGenerator[str]:
    """Serve `app` on `sock`, which was bound by `name`, to whoever has `token`; the URL."""
    host, port = sock.getsockname()[:2]
    url = f"http://{Address(host, port)}"
    if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        log.info("listening on %s", url)
    else:
        log.warning("listening on %s, which other machines reach, without TLS: see docs/api.md", url)
    limited = ratelimit.Limited(app, ratelimit.TCP)
    async with serving(Guarded(limited, token, name), sock, websocket_bytes=MAX_SHELL_MESSAGE):
        yield url


def bound(address: Address) -> socket.socket:
    """A socket that listens at `address`. Blocking: a name is looked up.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            # A port whose last owner's connections are still in TIME_WAIT is free.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(128)
        except BaseException:
            sock.close()
            raise
    except OSError as e:
        raise UserError(
            f"The daemon cannot listen on {address} ({e.strerror or e}); choose another address, or port 0.",
            cause="address",
        ) from e
    return sock


class Guarded:
    """ASGI middleware around a whole application: nothing of it is seen without the token, or by another name.

    Any IP address and ``localhost`` may stand in the Host header, and the name that was bound. A page on the
    web whose name was made to point here (DNS rebinding) comes with that name, and is refused.
    """

    def __init__(self, app: ASGIApp, token: str, name: str) -> None:
        self._app, self._token, self._names = app, token, {"localhost", name.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or WebSocket."""
        given = _values(scope, b"authorization")
        if len(given) != 1 or not matches(given[0], self._token):
            error = UserError(
                "This daemon wants its token; set VOIDBOX_TOKEN or VOIDBOX_TOKEN_FILE "
                "(`voidbox daemon token`, where it runs, prints the token).",
                cause="token",
            )
            headers = {"WWW-Authenticate": 'Bearer realm="voidbox"'}
            await problem.refuse(error, scope, receive, send, status=401, headers=headers)
        elif len(hosts := _values(scope, b"host")) != 1 or not self._is_ours(hosts[0]):
            error = UserError(
                "The Host header is neither an IP address, nor localhost, nor the name this daemon was bound "
                "by; use one of these (a reverse proxy must send the address it connects to).",
                cause="host",
            )
            await problem.refuse(error, scope, receive, send, status=421)
        else:
            await self._app(scope, receive, send)

    def _is_ours(self, host: bytes) -> bool:
        found = _HOST.fullmatch(host.decode("latin-1").lower())
        if not found:
            return False
        name = found["six"] or found["name"]
        return name in self._names or _is_address(name)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]
