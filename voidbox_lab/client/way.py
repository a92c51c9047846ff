"""How to reach the daemon: this user's own on its UNIX socket, or the one of `VOIDBOX_DAEMON` over TCP.

The token goes to that one address alone: it is a header of a client that has it as its base, that follows no
redirect and asks no proxy.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from voidbox_lab.client.protocol import BASE_URL, TIMEOUT
from voidbox_lab.errors import UserError
from voidbox_lab.settings import Settings, checked_token, is_loopback, read_token


@dataclass(frozen=True)
class Way:
    """A daemon's address."""

    where: str
    """For people."""
    base_url: str
    socket: str | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def is_private(self) -> bool:
        """Whether nobody between here and there can read along, so that model keys may be sent.

        A loopback address counts: what listens there and has the token is this user's, or their tunnel's end.
        """
        url = urlsplit(self.base_url)
        return self.socket is not None or url.scheme == "https" or is_loopback(url.hostname or "")

    def client(self) -> httpx.Client:
        """A blocking HTTP client."""
        return httpx.Client(transport=httpx.HTTPTransport(**self._transport()), **self._options())

    def async_client(self) -> httpx.AsyncClient:
        """One for an event loop."""
        if self.socket is not None:
            from voidbox_lab.client.unix import UnixTransport  # httpcore: for whoever connects, as in httpx itself

            return httpx.AsyncClient(transport=UnixTransport(self.socket), **self._options())
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(**self._transport()), **self._options())

    def _transport(self) -> dict[str, Any]:
        if self.base_url.startswith("https:"):
            return {"verify": ssl.create_default_context()}
        # No TLS here: verify=False saves loading the certificate store, 20 ms each time.
        return {"uds": self.socket, "verify": False}

    def _options(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {
            "base_url": self.base_url,
            "headers": headers,
            "timeout": TIMEOUT,
            "trust_env": False,
            "follow_redirects": False,
        }


def way(settings: Settings) -> Way:
    """The way to the daemon of `settings`.

    Raises:
        UserError: `VOIDBOX_DAEMON` is set and no usable token.
    """
    if settings.daemon is None:
        return Way(where=str(settings.socket), base_url=BASE_URL, socket=str(settings.socket))
    return Way(where=settings.daemon, base_url=settings.daemon, token=_token(settings))


def _token(settings: Settings) -> str:
    # Never this user's own <data>/token by default: the address may be somebody else's daemon.
    if settings.token is not None:
        return checked_token(settings.token.strip(), "VOIDBOX_TOKEN")
    path = settings.token_from
    if path is None:
        raise UserError(
            f"The daemon at {settings.daemon} wants its token; set VOIDBOX_TOKEN or VOIDBOX_TOKEN_FILE "
            "(`voidbox daemon token`, where it runs, prints the token)."
        )
    try:
        return read_token(path)
    except FileNotFoundError:
        raise UserError(f"There is no token file {path}; mend VOIDBOX_TOKEN_FILE.") from None
