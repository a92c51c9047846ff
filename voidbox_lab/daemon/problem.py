"""Errors as ``application/problem+json`` (RFC 9457), carrying `VoidboxError.to_dict` under ``error``."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from voidbox_lab.errors import Cancelled, LimitExceeded, ProviderError, Unavailable, UserError, VoidboxError

log = logging.getLogger(__name__)


def status_of(error: VoidboxError) -> int:
    """The HTTP status for an error: the caller's fault 4xx, this side's 5xx."""
    if isinstance(error, UserError):
        return 404 if error.cause == "unknown-run" else 422
    if isinstance(error, LimitExceeded):
        return 413
    if isinstance(error, Unavailable):
        return 503
    if isinstance(error, Cancelled):
        return 409
    return 500


def response(error: VoidboxError, status: int | None = None) -> JSONResponse:
    """The error as a response."""
    status = status or status_of(error)
    body = {
        "type": f"https://voidbox-lab.org/errors/{error.kind}",
        "title": type(error).__name__,
        "status": status,
        "detail": error.message,
        "error": error.to_dict(),
    }
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Make every error of `app`, its own faults included, a problem document."""

    @app.exception_handler(VoidboxError)
    async def _ours(_: Request, error: VoidboxError) -> JSONResponse:
        return response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "request"
        return response(UserError(f"{where}: {str(first['msg']).removeprefix('Value error, ')}."))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(ours := getattr(error, "error", None), VoidboxError):
            return response(ours)
        message = f"{request.method} {request.url.path}: {error.detail}."
        return response(UserError(message), error.status_code)

    @app.exception_handler(Exception)
    async def _fault(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        message = f"The daemon failed on {request.method} {request.url.path}; its log says why."
        return response(ProviderError(message, cause="internal"))
