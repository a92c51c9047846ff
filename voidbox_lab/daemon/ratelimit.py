"""How much one listener takes: requests per second and client, requests and event streams at once, header bytes.

The bucket is our own forty lines: the libraries that fit count in fixed or sliding windows, wait instead of
refusing, or want a store and a thread beside them, all of which is for several servers; this is for one process.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from voidbox_lab.daemon import problem
from voidbox_lab.errors import LimitExceeded, UserError

MAX_CLIENTS = 4096
"""Buckets kept per listener; the one that was used longest ago goes, which is as if it had filled up."""
_STREAMS = "voidbox.streams"
"""Where in the ASGI scope the listener's places for streams are."""


@dataclass(frozen=True)
class Limits:
    """What one listener takes."""

    rate: float
    """Requests per second and client, on average."""
    burst: int
    """Requests that a client may make at once."""
    requests: int
    """In flight, of all clients, event streams included."""
    streams: int
    """Event streams and WebSockets among them."""
    header_bytes: int = 8192
    """Of request line and headers; the HTTP parser itself ends at 16 KiB."""


UNIX = Limits(rate=1000, burst=5000, requests=768, streams=512)
"""This user's own notebooks and scripts: against a loop that ran wild, not against use."""
TCP = Limits(rate=50, burst=200, requests=64, streams=32)


class Buckets:
    """A token bucket per client."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Take a token; 0 if there was one, else the seconds until there is."""
        now = self._clock()
        level, then = self._levels.pop(client, (float(self._burst), now))
        level = min(self._burst, level + (now - then) * self._rate)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._levels[client] = (level if wait else level - 1, now)
        if len(self._levels) > MAX_CLIENTS:
            self._levels.popitem(last=False)
        return wait


class Places:
    """A number of places, none of which is waited for."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most, self.taken = name, most, 0

    def take(self) -> LimitExceeded | None:
        """Take a place, to be given up by `leave`; the error if all are taken."""
        if self.taken < self._most:
            self.taken += 1
            return None
        return LimitExceeded(
            f"There are {self._most} {self._name} open here, which is the most; close some and try again.",
            limit=self._name,
            value=self._most,
            unit=self._name,
            source="policy",
        )

    def leave(self) -> None:
        """Give a place up."""
        self.taken -= 1


class Limited:
    """ASGI middleware: refuses what is beyond `limits`; 429 with Retry-After, and 431 for headers.

    An event stream takes its place where it begins, with `streaming`.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._buckets = Buckets(limits.rate, limits.burst)
        self._requests = Places("requests", limits.requests)
        self._streams = Places("streams", limits.streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
        elif (size := _head_bytes(scope)) > self._limits.header_bytes:
            most = self._limits.header_bytes
            head = UserError(f"The request's head has {size} bytes and may have {most}; send a shorter one.")
            await problem.refuse(head, scope, receive, send, status=431)
        elif wait := self._buckets.take(_client(scope)):
            await _too_much(self._too_fast(wait), scope, receive, send, after_s=wait)
        elif error := self._requests.take():
            await _too_much(error, scope, receive, send)
        else:
            try:
                scope[_STREAMS] = self._streams
                app = streaming(self._app) if scope["type"] == "websocket" else self._app
                await app(scope, receive, send)
            finally:
                self._requests.leave()

    def _too_fast(self, wait: float) -> LimitExceeded:
        return LimitExceeded(
            f"This client makes more than {self._limits.rate:g} requests a second; wait {wait:.2g} s.",
            limit="rate",
            value=self._limits.rate,
            unit="requests/s",
            source="policy",
        )


def streaming(app: ASGIApp) -> ASGIApp:
    """`app` (a response, say) while it has one of the places its listener has for streams; else 429."""

    async def streamed(scope: Scope, receive: Receive, send: Send) -> None:
        places: Places | None = scope.get(_STREAMS)
        if places is None:
            await app(scope, receive, send)
        elif error := places.take():
            await _too_much(error, scope, receive, send)
        else:
            try:
                await app(scope, receive, send)
            finally:
                places.leave()

    return streamed


async def _too_much(error: LimitExceeded, scope: Scope, receive: Receive, send: Send, after_s: float = 1) -> None:
    headers = {"Retry-After": str(math.ceil(after_s))}
    await problem.refuse(error, scope, receive, send, status=429, headers=headers)


def _head_bytes(scope: Scope) -> int:
    target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    return target + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _client(scope: Scope) -> str:
    """Whose bucket: an address; of IPv6 the /64, since who has one address has them all; one for a UNIX socket."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))
    return str(address)
