"""The gateway: the one door of every box, an ASGI application.

Agents reach it inside their box as ``http://127.0.0.1:8129``; it holds the real keys, knows which stage
a request belongs to by its token, sends it to that stage's model and to no other, and meters it. A
request that names another model is carried to the stage's own: agents ask small models for side jobs,
and refusing those would break them, while the stage's declaration stays the only choice of model.

Runs on one event loop; `register` and `revoke` are called on that loop.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from typing import Any

import anyio
import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from voidbox_lab.errors import UserError, VoidboxError
from voidbox_lab.gateway import api as shapes
from voidbox_lab.gateway.api import Api
from voidbox_lab.gateway.exchange import Exchange
from voidbox_lab.gateway.guard import guarded
from voidbox_lab.gateway.jsonio import parse
from voidbox_lab.gateway.keys import Keys
from voidbox_lab.gateway.limits import Limits
from voidbox_lab.gateway.scripted import Library, ScriptedUpstream
from voidbox_lab.gateway.session import Live, Sessions, StageSession
from voidbox_lab.gateway.translate import TranslatedUpstream
from voidbox_lab.gateway.upstream import Ask, HttpUpstream, Upstream, new_client
from voidbox_lab.spec import Model, digest_json
from voidbox_lab.spec.events import ModelCall

METER_S = 5.0
"""How long a stage that ends waits for its requests in flight to end, in seconds."""
OnCall = Callable[[StageSession, ModelCall], None]
log = logging.getLogger(__name__)

_SPOKEN = {
    "anthropic": {Api.MESSAGES},
    # Messages are translated to Chat Completions.
    "openai": {Api.MESSAGES, Api.CHAT, Api.RESPONSES},
    # Ollama itself serves all four: Messages since 0.14, Responses since 0.13.
    "ollama": set(Api),
    "scripted": set(Api),
}


class _Refused(Exception):
    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Gateway:
    """An ASGI application; also an async context manager that closes what it opened.

    Args:
        on_call: told of every model request once it has ended, on the event loop; must not block.
        limits: bounds on sizes and waits.
        library: where scripted models come from.
    """

    def __init__(
        self, on_call: OnCall | None = None, *, limits: Limits | None = None, library: Library | None = None
    ) -> None:
        self._on_call = on_call
        self._limits = limits or Limits()
        self._library = library or Library.default()
        self._sessions = Sessions()
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Gateway:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Shut every stage out and close connections to upstreams. Do it before its server stops: that waits."""
        self._sessions.clear()
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    def check(self, model: Model, keys: Keys, api: str | None = None) -> None:
        """Say now what would fail at the first model call, made by `api` if known; costs nothing, asks no server.

        Raises:
            UserError: no key for the model's provider, no such script, or no way from `api` to the provider.
        """
        if api is not None and Api(api) not in _SPOKEN[model.provider]:
            raise UserError(_unreachable(model, api), cause="api")
        if model.provider == "scripted":
            self._library.load(model.name)
        else:
            keys.key(model)

    def script_digest(self, model: Model) -> str | None:
        """The digest of a scripted model's script; None for any other model.

        Raises:
            UserError: there is no such script.
        """
        if model.provider != "scripted":
            return None
        return digest_json(self._library.load(model.name).model_dump(mode="json"))

    def register(self, session: StageSession) -> str:
        """Let a stage in; returns the token its agent shows as ``x-api-key`` or bearer token."""
        return self._sessions.add(session)

    def revoke(self, token: str) -> None:
        """Shut a stage out; its requests in flight end at once. An unknown token is no error."""
        self._sessions.remove(token)

    async def close(self, token: str) -> None:
        """`revoke`, and wait until the stage's requests in flight are metered: `on_call` has been told of every
        request of the stage when this returns. One that does not end within `METER_S` is metered as it stands."""
        live = self._sessions.remove(token)
        if live is None:
            return
        with anyio.move_on_after(METER_S, shield=True):
            await live.all_landed()
        for request in tuple(live.in_flight):
            log.warning("%s/%s: a request did not end within %g s", live.session.run, live.session.stage, METER_S)
            request.report()

    def trouble(self, token: str) -> VoidboxError | None:
        """Why the latest model request under `token` failed on the host's side, if it did."""
        live = self._sessions.find(token)
        return live.trouble if live else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        # Not of `request.url`, which believes the Host header.
        path, method = str(scope["path"]), request.method
        api = shapes.INFERENCE.get(path) or shapes.guess(path, dict(request.headers))
        try:
            live = self._authenticate(request)
            if method == "POST" and (path in shapes.INFERENCE or path == shapes.COUNT_TOKENS):
                await self._ask(request, live, api, count_only=path == shapes.COUNT_TOKENS, send=send)
                return
            response = _answer_locally(method, path, api, live.session.model)
            if response is None:
                raise _Refused(404, f"The gateway has no {method} {path}; it carries model requests only.")
        except _Refused as e:
            body = shapes.error_body(api, e.status, e.message)
            response = Response(body, e.status, headers=e.headers, media_type="application/json")
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    def _authenticate(self, request: Request) -> Live:
        shown = request.headers.get("x-api-key") or ""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if not shown and scheme.lower() == "bearer":
            shown = bearer.strip()
        live = self._sessions.find(shown) if shown else None
        if live is None:
            raise _Refused(401, "The gateway does not know this token; use the one the stage was started with.")
        return live

    async def _ask(self, request: Request, live: Live, api: Api, *, count_only: bool, send: Send) -> None:
        model = live.session.model
        if api not in _SPOKEN[model.provider]:
            raise _Refused(404, _unreachable(model, api))
        if live.requests >= self._limits.concurrent:
            raise _busy(f"{self._limits.concurrent} model requests")
        hold = _Hold(live)
        try:
            body = await self._body(request, hold)
            if live.revoked:
                raise _Refused(401, "The stage has ended; its token is no longer valid.")
            await self._carry(request, live, api, body, hold.size, count_only=count_only, send=send)
        finally:
            hold.release()

    async def _carry(
        self,
        request: Request,
        live: Live,
        api: Api,
        body: dict[str, Any],
        size: int,
        *,
        count_only: bool,
        send: Send,
    ) -> None:
        model = live.session.model
        try:
            body = guarded(api, body)
        except UserError as e:
            raise _Refused(400, e.message) from e
        body["model"] = model.name
        if count_only and model.provider != "anthropic":
            # The others cannot count; an estimate at four characters a token serves its one use, compaction.
            estimate = json.dumps({"input_tokens": max(1, size // 4)}).encode()
            await Response(estimate, media_type="application/json")(request.scope, request.receive, send)
            return
        exchange = Exchange(
            id="req-" + secrets.token_hex(8),
            live=live,
            ask=Ask(api, body, dict(request.headers), size, count_only=count_only),
            upstream=self._upstream(live, api),
            limits=self._limits,
            receive=request.receive,
            send=send,
            key=_key(live.session),
            hide_usage=_ask_for_usage(api, body),
        )
        live.calls += not count_only
        await exchange.run(None if count_only else lambda call: self._report(live.session, call))

    def _upstream(self, live: Live, api: Api) -> Upstream:
        session = live.session
        if session.model.provider == "scripted":
            return ScriptedUpstream(self._library, session.model.name, call=live.calls)
        if self._client is None:
            self._client = new_client(self._limits)
        http = HttpUpstream(self._client, session.model, session.keys, self._limits)
        if session.model.provider == "openai" and api is Api.MESSAGES:
            return TranslatedUpstream(http, openai_itself="api.openai.com" in session.keys.base_url(session.model))
        return http

    async def _body(self, request: Request, hold: _Hold) -> dict[str, Any]:
        limit = self._limits.request_bytes
        too_large = _Refused(413, f"The request is larger than {limit} bytes.")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise _Refused(415, "The gateway reads plain JSON only; send the request without content encoding.")
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        data = bytearray()
        try:
            with anyio.fail_after(self._limits.receive_s):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > limit:
                        raise too_large
                    if hold.add(len(chunk)) > self._limits.stage_bytes:
                        raise _busy(f"{self._limits.stage_bytes} bytes of requests")
        except TimeoutError as e:
            raise _Refused(408, f"The request was not complete within {self._limits.receive_s:g} s.") from e
        # Before parsing: a few bytes of JSON can become a few hundred of memory.
        values, most = sum(map(data.count, b"{[,:")), self._limits.stage_values
        if values > most:
            raise _Refused(413, f"The request holds more than {most} values.")
        if hold.weigh(values) > most:
            raise _busy(f"{most} values in requests")
        try:
            body = await parse(bytes(data))
        except (ValueError, RecursionError) as e:
            raise _Refused(400, "The request is not JSON.") from e
        if not isinstance(body, dict):
            raise _Refused(400, "The request is not a JSON object.")
        return body

    def _report(self, session: StageSession, call: ModelCall) -> None:
        log.debug("%s/%s: %s %s %.2f s", session.run, session.stage, call.model, call.status, call.duration_s)
        if self._on_call is None:
            return
        try:
            self._on_call(session, call)
        except Exception:
            # The answer has gone out; a failing listener must not turn it into a failed request.
            log.exception("a model call of %s/%s could not be recorded", session.run, session.stage)


class _Hold:
    """What a request takes up of its stage's share, until it is released."""

    def __init__(self, live: Live) -> None:
        self._live, self.size, self._values = live, 0, 0
        live.requests += 1

    def add(self, count: int) -> int:
        """Take `count` more bytes; returns what the stage holds in all."""
        self.size += count
        self._live.bytes_held += count
        return self._live.bytes_held

    def weigh(self, values: int) -> int:
        """Take `values` more values; returns what the stage holds in all."""
        self._values += values
        self._live.values_held += values
        return self._live.values_held

    def release(self) -> None:
        self._live.requests -= 1
        self._live.bytes_held -= self.size
        self._live.values_held -= self._values


def _busy(what: str) -> _Refused:
    return _Refused(429, f"This stage has {what} in flight already; wait for one to end.", **{"retry-after": "1"})


def _key(session: StageSession) -> str | None:
    try:
        return session.keys.key(session.model)
    except UserError:
        return None  # the upstream raises it where it can be told to the agent


def _ask_for_usage(api: Api, body: dict[str, Any]) -> bool:
    """Have a Chat Completions stream end with its token counts; True if the client did not ask for them."""
    if api is not Api.CHAT or body.get("stream") is not True:
        return False
    options = body.get("stream_options")
    options = options if isinstance(options, dict) else {}
    body["stream_options"] = {**options, "include_usage": True}
    return options.get("include_usage") is not True


def _answer_locally(method: str, path: str, api: Api, model: Model) -> Response | None:
    """What tells a client which models there are: the stage's own, and no other."""
    if method != "GET":
        return None
    name = model.name
    if path == shapes.OLLAMA_TAGS:
        data: dict[str, Any] = {"models": [{"name": name, "model": name, "size": 0, "details": {}}]}
    elif path == shapes.OLLAMA_VERSION:
        data = {"version": "0.14.0"}
    elif path == shapes.MODELS and api is Api.MESSAGES:
        entry = {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
        data = {"data": [entry], "has_more": False, "first_id": name, "last_id": name}
    elif path == shapes.MODELS:
        data = {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": model.provider}],
        }
    else:
        return None
    return Response(json.dumps(data), media_type="application/json")


def _unreachable(model: Model, api: str) -> str:
    spoken = " or ".join(sorted(_SPOKEN[model.provider]))
    return f"The stage's model {model} is not reached by the API {api!r}; use an agent that speaks {spoken}."


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
