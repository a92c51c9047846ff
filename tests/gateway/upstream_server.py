"""A real HTTP server that plays a model provider, with a socket, time stamps and a memory. Not a test."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx

from voidbox_lab.gateway import Gateway, Keys, Library, Limits, StageSession, serving
from voidbox_lab.spec import Model
from voidbox_lab.spec.events import ModelCall

KEY = "sk-real-key-0123456789abcdef"
Handler = Callable[["Seen", "Replier"], Awaitable[None]]


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Replier:
    """Answers one request."""

    def __init__(self, send: Any, receive: Any) -> None:
        self._send, self.receive = send, receive

    async def json(self, value: Any, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        await self.start(status, "application/json", **headers)
        await self._send({"type": "http.response.body", "body": data})

    async def start(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        raw = [(b"content-type", kind.encode())]
        raw += [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def chunk(self, data: bytes | dict[str, Any], *, last: bool = False) -> None:
        if isinstance(data, dict):
            name = f"event: {data['type']}\n" if "type" in data else ""
            data = f"{name}data: {json.dumps(data)}\n\n".encode()
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def hung_up(self) -> None:
        """Wait until the caller is gone."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


@dataclass
class Provider:
    """The server: set `handler`, read `seen`."""

    url: str = ""
    handler: Handler | None = None
    seen: list[Seen] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        data, more = b"", True
        while more:
            message = await receive()
            data += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        seen = Seen(scope["method"], scope["path"], headers, json.loads(data) if data else None)
        self.seen.append(seen)
        assert self.handler is not None, "no handler was set"
        await self.handler(seen, Replier(send, receive))


@dataclass
class Bench:
    """A gateway that is being served, a provider behind it, and the calls it reported."""

    gateway: Gateway
    provider: Provider
    url: str
    calls: list[tuple[StageSession, ModelCall]] = field(default_factory=list)
    keys: Keys = field(default_factory=Keys)

    def register(self, model: str, keys: Keys | None = None, stage: str = "analyst") -> str:
        """A token for a stage with `model`; ``{url}`` in it is the provider's."""
        parsed = Model.parse(model.replace("{url}", self.provider.url))
        return self.gateway.register(StageSession("run-1", stage, parsed, keys or self.keys))

    def client(self, token: str) -> httpx.AsyncClient:
        """An HTTP client that shows `token`."""
        return httpx.AsyncClient(base_url=self.url, headers={"x-api-key": token}, timeout=20, trust_env=False)

    @property
    def call(self) -> ModelCall:
        """The one call that was reported."""
        assert len(self.calls) == 1, self.calls
        return self.calls[0][1]

    async def reported(self, count: int = 1) -> ModelCall:
        """The latest call, once `count` have been reported; the client may be ahead of the report."""
        with anyio.fail_after(20):
            while len(self.calls) < count:
                await anyio.sleep(0.005)
        return self.calls[-1][1]


@asynccontextmanager
async def bench(limits: Limits | None = None, library: Library | None = None) -> AsyncIterator[Bench]:
    """Serve a provider and a gateway on loopback."""
    provider = Provider()
    upstream, front = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    provider.url = f"http://127.0.0.1:{upstream.getsockname()[1]}"
    calls: list[tuple[StageSession, ModelCall]] = []
    gateway = Gateway(lambda session, call: calls.append((session, call)), limits=limits, library=library)
    url = f"http://127.0.0.1:{front.getsockname()[1]}"
    # The provider's own base URL, as if the user had set it: that is where the real keys belong.
    keys = Keys(
        {
            "ANTHROPIC_API_KEY": KEY,
            "ANTHROPIC_BASE_URL": provider.url,
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": provider.url + "/v1",
            "OLLAMA_HOST": provider.url,
        }
    )
    async with serving(provider, upstream), serving(gateway, front), gateway:
        yield Bench(gateway, provider, url, calls, keys)
    upstream.close()
    front.close()
