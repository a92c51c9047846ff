"""The API's own description (OpenAPI 3.1): what every operation has in common is added here, so none can lack it.

Not for what one route does: that stands at the route.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import Scope

from voidbox_lab import __version__
from voidbox_lab.daemon import problem
from voidbox_lab.daemon.problem import Problem
from voidbox_lab.errors import UserError
from voidbox_lab.spec.api import CHECK_EVENT, EXEC_EVENT, Failed
from voidbox_lab.spec.events import Event

REF = "#/components/schemas/{model}"
DESCRIPTION = """\
Runs AI agents in hardware-isolated micro-VMs. One daemon per user; this is its API.

On its UNIX socket, which this user alone can open, no authentication is needed. Over TCP, which is off unless \
asked for, every request carries `Authorization: Bearer TOKEN`.

Every error is an `application/problem+json` document (RFC 9457), `Problem`. Event streams are server-sent \
events, each with a name and JSON as its `data`; the schema of the response is that of one event."""
TAGS = [
    {"name": "runs", "description": "Stages of agents in boxes: begin, look at, follow, cancel."},
    {"name": "artifacts", "description": "Files by their content; the inputs of runs."},
    {"name": "boxes", "description": "A command in a fresh box, and what dead processes left behind."},
    {"name": "daemon", "description": "The process itself: health, model keys, the end."},
]
_ALWAYS = {
    "401": "Over TCP: no token, or a wrong one.",
    "421": "Over TCP: the Host header names another host, as after DNS rebinding.",
    "422": "It cannot be done as asked; the message says what to mend.",
    "429": "Too many requests or streams; `Retry-After` says how many seconds to wait.",
    "431": "The request line and headers are too long.",
    "500": "The daemon's or the host's fault.",
    "503": "This machine lacks something; the message names it and its fix.",
}
_WITH_BODY = {
    "400": "The body is not JSON, or deeper or with longer numbers than is read.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
}
_WITH_JSON = {"415": "The body's Content-Type is not application/json."}
_HEADERS = {
    "401": {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "`Bearer`"}},
    "429": {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}},
}


def errors(**by_status: str) -> dict[int | str, dict[str, Any]]:
    """What a route says about its own errors: ``errors(_404="…")``. Their bodies are problem documents."""
    return {int(status.lstrip("_")): {"description": text} for status, text in by_status.items()}


def events(description: str, example: str, names: Mapping[str, str]) -> dict[int | str, dict[str, Any]]:
    """What a route says about its event stream; `names` maps the events' names to the schemas of their data."""
    # OpenAPI has a word for what a stream consists of (itemSchema) from 3.2 on; before, tools take it from here.
    schema = {
        "type": "object",
        "description": "One server-sent event of the stream, by its fields.",
        "anyOf": [_event(name, model) for name, model in names.items()],
    }
    content = {"text/event-stream": {"schema": schema, "x-example-stream": example}}
    return {200: {"description": description, "content": content}}


def _event(name: str, model: str) -> dict[str, Any]:
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": REF.format(model=model)},
    }
    fields = {"event": {"const": name}, "data": data, "id": {"type": "string"}}
    return {"type": "object", "properties": fields, "required": ["event", "data"]}


class Route(APIRoute):
    """A route whose JSON body must say that it is JSON (415), and whose strings must be text (422).

    JSON can escape half of a surrogate pair, which Python's parser lets pass and which no store, frame or
    answer can encode.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind a look at the content type."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def checked(request: Request) -> Response:
            media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media != "application/json":
                raise HTTPException(415, "The body must be JSON with Content-Type: application/json")
            if b"\\ud" in (await request.body()).lower() and not await _is_text(request):
                raise UserError("The body has half of a surrogate pair (\\uD800 to \\uDFFF), which is no text.")
            return await handle(request)

        return checked


async def _is_text(request: Request) -> bool:
    try:
        json.dumps(await request.json(), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except (ValueError, RecursionError):
        pass  # not JSON at all; FastAPI says so
    return True


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of `app`; made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="voidbox-lab",
            version=__version__,
            description=DESCRIPTION,
            tags=TAGS,
            routes=app.routes,
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            separate_input_output_schemas=False,
        )
        _complete(document)
        app.openapi_schema = document
    return app.openapi_schema


def allowed(app: FastAPI, scope: Scope) -> str:
    """The methods that the path of `scope` has, for Allow; routing itself knows those of one route only."""
    paths = describe(app)["paths"]
    methods = {
        method.upper()
        for template, operations in paths.items()
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)), scope["path"])
        for method in operations
    }
    return ", ".join(sorted(methods))


def _complete(document: dict[str, Any]) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for name, schema in _schemas().items():
        schemas.setdefault(name, schema)
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "`voidbox daemon token` prints it."}
    }
    # The second, empty one: no token on the UNIX socket.
    document["security"] = [{"token": []}, {}]
    for operations in document["paths"].values():
        for operation in operations.values():
            _complete_operation(operation)


def _complete_operation(operation: dict[str, Any]) -> None:
    common = dict(_ALWAYS)
    if body := operation.get("requestBody"):
        common |= _WITH_BODY
        common |= _WITH_JSON if "application/json" in body["content"] else {}
    responses = operation["responses"]
    # FastAPI's own word on 422 is about its own form of it.
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    for status, text in common.items():
        responses.setdefault(status, {"description": text})
    for status, response in responses.items():
        if status >= "400":
            response["content"] = {problem.MEDIA_TYPE: {"schema": {"$ref": REF.format(model="Problem")}}}
            if status in _HEADERS:
                response["headers"] = _HEADERS[status]
    operation["responses"] = dict(sorted(responses.items()))


def _schemas() -> dict[str, Any]:
    """Schemas that no route's types name: of errors, and of what event streams carry."""
    _, made = models_json_schema(
        [(Problem, "validation"), (Event, "validation"), (Failed, "validation")], ref_template=REF
    )
    found: dict[str, Any] = made["$defs"]
    unions: dict[str, TypeAdapter[Any]] = {"ExecEvent": EXEC_EVENT, "CheckEvent": CHECK_EVENT}
    for name, union in unions.items():
        schema = union.json_schema(ref_template=REF)
        found |= schema.pop("$defs", {})
        found[name] = schema
    return found
