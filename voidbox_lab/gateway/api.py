"""The shapes of the model APIs the gateway speaks, as far as it must speak for itself: routes and errors.

Sources: Anthropic Messages API (errors), OpenAI API (Chat Completions, Responses; error object), Ollama
(docs/api.md). What the shapes carry from an upstream is in `meter` and `translate`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any


class Api(StrEnum):
    """An API an agent may speak to the gateway."""

    MESSAGES = "messages"
    CHAT = "chat"
    RESPONSES = "responses"
    OLLAMA = "ollama"


INFERENCE: dict[str, Api] = {
    "/v1/messages": Api.MESSAGES,
    "/v1/chat/completions": Api.CHAT,
    "/v1/responses": Api.RESPONSES,
    "/api/chat": Api.OLLAMA,
}
"""Path of a POST that asks the model something."""

COUNT_TOKENS = "/v1/messages/count_tokens"
MODELS = "/v1/models"
OLLAMA_TAGS = "/api/tags"
OLLAMA_VERSION = "/api/version"

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def guess(path: str, headers: dict[str, str]) -> Api:
    """The API whose error shape a caller of an unknown `path` most likely reads."""
    if path.startswith("/api/"):
        return Api.OLLAMA
    if "anthropic-version" in headers or path.startswith("/v1/messages"):
        return Api.MESSAGES
    return Api.CHAT


def error_object(api: Api, status: int, message: str) -> dict[str, Any]:
    """An error as `api` words it."""
    if api is Api.OLLAMA:
        return {"error": message}
    if api is Api.MESSAGES:
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}.get(status)
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_body(api: Api, status: int, message: str) -> bytes:
    """`error_object` as JSON."""
    return json.dumps(error_object(api, status, message)).encode()


def stream_error(api: Api, status: int, message: str) -> bytes:
    """An error inside a stream that has begun, as one event (one line for Ollama)."""
    if api is Api.OLLAMA:
        return json.dumps({"error": message}).encode() + b"\n"
    if api is Api.RESPONSES:
        data: dict[str, Any] = {"type": "error", "code": "server_error", "message": message, "param": None}
        return b"event: error\ndata: " + json.dumps(data).encode() + b"\n\n"
    data = error_object(api, status, message)
    head = b"event: error\n" if api is Api.MESSAGES else b""
    return head + b"data: " + json.dumps(data).encode() + b"\n\n"


def error_message(body: bytes) -> str:
    """The human sentence in an upstream's error body, whatever its shape; "" if there is none."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return " ".join(body[:300].decode(errors="replace").split())
    error = data.get("error", data) if isinstance(data, dict) else data
    message = error.get("message", "") if isinstance(error, dict) else error
    return str(message)[:2000]
