"""Who uses the daemon now, and bounds on what a request may bring and how slowly."""

from __future__ import annotations

import time

import anyio
from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voidbox_lab.daemon import problem
from voidbox_lab.errors import LimitExceeded

MAX_BODY_BYTES = 80 << 20
"""Largest JSON request (a run's spec); artifacts are streamed and bounded by the store."""
BODY_S = 300.0
"""A JSON request is here within so long."""
CHUNK_S = 60.0
"""A client that sends nothing of a body it announced, or takes nothing of its answer, for so long is gone."""


WATCHING = frozenset({"/v1/overview"})
"""Paths that whoever merely watches asks for: they do not count as use of the daemon."""


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


class TooSlow(HTTPException):
    """The body does not come."""

    def __init__(self, bound_s: float) -> None:
        self.error = LimitExceeded(
            f"The request's body did not come within {bound_s:g} s; look at the connection and send it again.",
            limit="time",
            value=bound_s,
            unit="s",
        )
        super().__init__(408, self.error.message, headers={"Connection": "close"})


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
    """ASGI middleware: counts requests into an `Activity`, and cuts bodies that are too large or too slow."""

    def __init__(self, app: ASGIApp, activity: Activity) -> None:
        self._app, self._activity = app, activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or a WebSocket from handshake to close."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        self._activity.requests += 1
        try:
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
            elif _is_json(scope) and _announced(scope) > MAX_BODY_BYTES:
                await problem.response(TooLarge().error)(scope, receive, send)
            else:
                await self._app(scope, _bounded(receive, whole=_is_json(scope)), _patient(send))
        finally:
            self._activity.requests -= 1
            if scope["path"] not in WATCHING:
                self._activity.touch()


def _is_json(scope: Scope) -> bool:
    """Whether the body is read as one; an upload (PUT) goes to the store as it comes."""
    return bool(scope["method"] != "PUT")


def _announced(scope: Scope) -> int:
    text = dict(scope["headers"]).get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0


def _bounded(receive: Receive, *, whole: bool) -> Receive:
    """`receive` with an end to waiting for the body; if it is taken in `whole`, to its size and time as well."""
    taken, done = 0, False
    end = anyio.current_time() + BODY_S

    async def bounded() -> Message:
        nonlocal taken, done
        if done:
            # Only a disconnect is to come, and that may take as long as the answer.
            return await receive()
        left = end - anyio.current_time() if whole else CHUNK_S
        message: Message | None = None
        with anyio.move_on_after(max(0, min(CHUNK_S, left))):
            message = await receive()
        if message is None:
            raise TooSlow(CHUNK_S if left >= CHUNK_S else BODY_S)
        done = not message.get("more_body", False)
        taken += len(message.get("body", b""))
        if whole and taken > MAX_BODY_BYTES:
            # FastAPI turns any other exception of a body's reading into a 400.
            raise TooLarge
        return message

    return bounded


def _patient(send: Send) -> Send:
    """`send` that does not wait for ever for a client that takes nothing."""

    async def bounded(message: Message) -> None:
        with anyio.move_on_after(CHUNK_S) as waiting:
            await send(message)
        if waiting.cancelled_caught:
            raise OSError(f"the client took nothing for {CHUNK_S:g} s")

    return bounded
