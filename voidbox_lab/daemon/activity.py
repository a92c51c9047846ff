"""Who uses the daemon now, and bounds on what a request may bring."""

from __future__ import annotations

import time

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voidbox_lab.daemon import problem
from voidbox_lab.errors import LimitExceeded

MAX_BODY_BYTES = 80 << 20
"""Largest JSON request (a run's spec); artifacts are streamed and bounded by the store."""


class TooLarge(HTTPException):
    """The body is beyond `MAX_BODY_BYTES`."""

    def __init__(self) -> None:
        self.error = LimitExceeded(
            f"The request is larger than {MAX_BODY_BYTES >> 20} MiB; upload large inputs as artifacts.",
            limit="request",
            value=MAX_BODY_BYTES,
            unit="bytes",
        )
        super().__init__(413, self.error.message)


class Activity:
    """Counts requests in flight and remembers when the last one ended."""

    def __init__(self) -> None:
        self.requests = 0
        self._last = time.monotonic()

    def touch(self) -> None:
        """Something happened just now."""
        self._last = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since anything happened; 0 while a request is in flight."""
        return 0.0 if self.requests else time.monotonic() - self._last


class Bounded:
    """ASGI middleware: counts requests into an `Activity` and cuts bodies that are too large."""

    def __init__(self, app: ASGIApp, activity: Activity) -> None:
        self._app, self._activity = app, activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        self._activity.requests += 1
        try:
            # A WebSocket's messages are bounded where they are read.
            body = scope.get("method") == "POST"
            if body and _announced(scope) > MAX_BODY_BYTES:
                await problem.response(TooLarge().error)(scope, receive, send)
                return
            await self._app(scope, _counting(receive) if body else receive, send)
        finally:
            self._activity.requests -= 1
            self._activity.touch()


def _announced(scope: Scope) -> int:
    text = dict(scope["headers"]).get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0


def _counting(receive: Receive) -> Receive:
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            # FastAPI turns any other exception of a body's reading into a 400.
            raise TooLarge
        return message

    return counted
