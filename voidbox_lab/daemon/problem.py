"""Errors as ``application/problem+json`` (RFC 9457), carrying `VoidboxError.to_dict` under ``error``."""

from __future__ import annotations

import http
import logging
from collections.abc import Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voidbox_lab.errors import Cancelled, LimitExceeded, ProviderError, Unavailable, UserError, VoidboxError
from voidbox_lab.spec import Trouble
from voidbox_lab.spec.base import Frozen

MEDIA_TYPE = "application/problem+json"
MAX_MESSAGE = 2000
"""Characters of a message; paths and field names that a client made up are in some."""
_STATUS = {"unknown-run": 404, "unknown-artifact": 404, "busy": 409, "conflict": 409}
_STATUS |= {"run-over": 409, "run-not-ended": 409, "no-box": 409, "shutdown": 409}
_KEPT = frozenset({"allow", "connection", "content-range", "retry-after", "www-authenticate"})
"""Headers of a replaced error that say something about the error and not about its body."""
_RATE_LIMITS = frozenset({"rate", "requests", "streams"})

log = logging.getLogger(__name__)


class Problem(Frozen):
    """Why a request failed: RFC 9457, with the error as this project's clients raise it."""

    type: str = Field(examples=["https://voidbox-lab.org/errors/user"])
    """A URI for the kind of error; a name, not an address to fetch."""
    title: str = Field(examples=["UserError"])
    """The error's class."""
    status: int = Field(ge=400, le=599, examples=[404])
    """The HTTP status, again."""
    detail: str = Field(examples=["There is no run 'run-0'; `voidbox runs` lists those there are."])
    """One sentence: what, where, what to do."""
    error: Trouble
    """The error: its kind, its cause, and for limits and commands their figures."""


def status_of(error: VoidboxError) -> int:
    """The HTTP status for an error: the caller's fault 4xx, this side's 5xx."""
    if isinstance(error, UserError):
        return _STATUS.get(error.cause or "", 422)
    if isinstance(error, LimitExceeded):
        return 429 if error.limit in _RATE_LIMITS else 413
    if isinstance(error, Unavailable):
        return 503
    if isinstance(error, Cancelled):
        return 409
    return 500


def response(
    error: VoidboxError, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The error as a response."""
    status = status or status_of(error)
    message = _printable(error.message)
    body = {
        "type": f"https://voidbox-lab.org/errors/{error.kind}",
        "title": type(error).__name__,
        "status": status,
        "detail": message,
        "error": error.to_dict() | {"message": message},
    }
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def _printable(message: str) -> str:
    """Bounded, and encodable: JSON can bring half a surrogate pair, which is no UTF-8."""
    text = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}…"
    return text.encode(errors="backslashreplace").decode()


async def refuse(
    error: VoidboxError,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request, or a WebSocket's handshake, with `error` instead of the application."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        # A server that cannot carry a body here makes a 403 of it (ASGI: close before accept).
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    await response(error, status, headers)(scope, receive, send)


def install(app: FastAPI, allowed: Callable[[Scope], str]) -> None:
    """Make every error of `app`, its own faults included, a problem document; `allowed` gives a path's methods."""

    @app.exception_handler(VoidboxError)
    async def _ours(_: Request, error: VoidboxError) -> JSONResponse:
        return response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "request"
        return response(UserError(f"{where[:200]}: {str(first['msg']).removeprefix('Value error, ')}."))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(ours := getattr(error, "error", None), VoidboxError):
            return response(ours, error.status_code, error.headers)
        headers = dict(error.headers or {})
        if error.status_code == 405 and (methods := allowed(request.scope)):
            headers["Allow"] = methods
        return _plain(request.method, request.url.path, error.status_code, error.detail.rstrip("."), headers)

    @app.exception_handler(Exception)
    async def _fault(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path[:200], exc_info=error)
        message = f"The daemon failed on {request.method} {request.url.path[:200]}; its log says why."
        return response(ProviderError(message, cause="internal"))


def _plain(
    method: str, path: str, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error that was known by its status alone."""
    message = f"{method[:20]} {path[:200]}: {detail or http.HTTPStatus(status).phrase}."
    error = UserError(message) if status < 500 else ProviderError(message)
    return response(error, status, headers)


class AlwaysProblems:
    """ASGI middleware: an error response of another kind becomes a problem document of the same status.

    Libraries answer some by themselves, as plain text: a file response a Range that cannot be, for one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        replaced = False

        async def mended(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = Headers(raw=message["headers"])
                if not headers.get("content-type", "").startswith(MEDIA_TYPE):
                    replaced = True
                    kept = {k: v for k, v in headers.items() if k in _KEPT}
                    document = _plain(scope["method"], scope["path"], message["status"], headers=kept)
                    await document(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, mended)
