"""Asks a real model server, over HTTP, and hands its answer on piece by piece.

An `Answer` is the same for a real server, a translated one and a scripted one; `exchange` cannot tell.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
import httpx

from voidbox_lab import __version__
from voidbox_lab.errors import ProviderError
from voidbox_lab.gateway.api import Api
from voidbox_lab.gateway.jsonio import dump
from voidbox_lab.gateway.keys import Keys
from voidbox_lab.gateway.limits import Limits
from voidbox_lab.spec import Model

# What httpx and httpcore log at these levels names hosts and headers; keys must not get there by accident.
logging.getLogger("httpcore").setLevel(logging.WARNING)
logging.getLogger("httpx").setLevel(logging.WARNING)

PASSED_ON = frozenset({"accept", "anthropic-version", "anthropic-beta", "openai-beta"})
"""Request headers an upstream gets from the guest. All others stay: they identify, or are hop by hop."""

PASSED_BACK = frozenset(
    {"content-type", "retry-after", "retry-after-ms", "x-should-retry", "request-id", "x-request-id"}
)
"""Response headers a guest gets."""

_PATHS = {
    Api.MESSAGES: "/messages",
    Api.CHAT: "/chat/completions",
    Api.RESPONSES: "/responses",
    Api.OLLAMA: "/api/chat",
}


class UpstreamBroke(ProviderError):
    """The upstream could not be reached, or its answer broke off. The message names host and cause."""


@dataclass
class Ask:
    """One request to a model, read and checked."""

    api: Api
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    """Bytes of the request as it came."""
    count_only: bool = False
    """Count the tokens, do not answer."""

    @property
    def stream(self) -> bool:
        """Whether the caller asked for a stream."""
        # Ollama streams unless told not to.
        return self.body.get("stream") is not False if self.api is Api.OLLAMA else self.body.get("stream") is True


@dataclass
class Answer:
    """The beginning of an answer; `chunks` is the rest of it."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]

    @property
    def streams(self) -> bool:
        """Whether it comes as server-sent events or lines of JSON."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return self.status < 400 and kind in {"text/event-stream", "application/x-ndjson", "application/jsonl"}


class Upstream(Protocol):
    """Something that answers."""

    def open(self, ask: Ask) -> AbstractAsyncContextManager[Answer]:
        """Ask; the answer is valid within the context, and given up at its end.

        Raises:
            UpstreamBroke: it cannot be reached, or broke off.
            UserError: there is no key.
        """
        ...


def new_client(limits: Limits) -> httpx.AsyncClient:
    """The HTTP client all stages share. Proxies of the environment apply, but never to this machine itself."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=limits.connect_s),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        mounts={"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None},
        follow_redirects=False,
    )


def endpoint(base: str, provider: str, api: Api, *, count_only: bool = False) -> str:
    """The URL of `api` under a base URL, with or without its ``/v1``, as users write them.

    OpenAI's convention includes the version in the base, Anthropic's does not; a base that is only a
    host gets one.
    """
    base = base.rstrip("/")
    if api is Api.OLLAMA:
        return base.removesuffix("/v1") + _PATHS[api]
    if provider == "openai":
        base = base if httpx.URL(base).path.strip("/") else base + "/v1"
    else:
        base = base.removesuffix("/v1") + "/v1"
    return base + _PATHS[api] + ("/count_tokens" if count_only else "")


class HttpUpstream:
    """The server behind a `Model`, asked in an API it speaks itself."""

    def __init__(self, client: httpx.AsyncClient, model: Model, keys: Keys, limits: Limits) -> None:
        self._client, self._model, self._keys, self._limits = client, model, keys, limits

    @asynccontextmanager
    async def open(self, ask: Ask) -> AsyncGenerator[Answer]:
        """See `Upstream.open`. Every wait is bounded by `Limits`."""
        url = httpx.URL(
            endpoint(self._keys.base_url(self._model), self._model.provider, ask.api, count_only=ask.count_only)
        )
        request = self._client.build_request(
            "POST", url, content=await dump(ask.body, ask.size), headers=self._headers(ask)
        )
        where = f"{url.host}:{url.port}" if url.port else url.host
        try:
            with anyio.fail_after(self._limits.first_byte_s):
                response = await self._client.send(request, stream=True)
        except TimeoutError as e:
            raise UpstreamBroke(
                f"The model server {where} did not begin to answer within {self._limits.first_byte_s:g} s.",
                cause="timeout",
            ) from e
        except httpx.ConnectTimeout as e:
            raise UpstreamBroke(
                f"The model server {where} could not be reached within {self._limits.connect_s:g} s.",
                cause="timeout",
            ) from e
        except httpx.HTTPError as e:
            raise UpstreamBroke(
                f"The model server {where} cannot be reached ({_why(e)}); is it running?", cause="unreachable"
            ) from e
        try:
            if response.is_redirect:
                raise UpstreamBroke(
                    f"The model server {where} redirects elsewhere; give its final address as base URL.",
                    cause="redirect",
                )
            headers = {k: v for k, v in response.headers.items() if k in PASSED_BACK}
            yield Answer(response.status_code, headers, self._chunks(response, where))
        finally:
            # Closing tells the server at once that nobody reads on; it must happen in a cancelled task too.
            with anyio.move_on_after(2, shield=True):
                await response.aclose()

    def _headers(self, ask: Ask) -> dict[str, str]:
        headers = {k: v for k, v in ask.headers.items() if k in PASSED_ON and v.isascii()}
        headers |= {
            "content-type": "application/json",
            # The meter reads along, and compression would buffer a stream.
            "accept-encoding": "identity",
            "user-agent": f"voidbox-lab/{__version__}",
        }
        key = self._keys.key(self._model)
        if self._model.provider == "anthropic":
            headers.setdefault("anthropic-version", "2023-06-01")
            if key:
                headers["x-api-key"] = key
        elif key:
            headers["authorization"] = f"Bearer {key}"
        return headers

    async def _chunks(self, response: httpx.Response, where: str) -> AsyncGenerator[bytes]:
        chunks = response.aiter_bytes()
        while True:
            try:
                with anyio.fail_after(self._limits.idle_s):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError as e:
                raise UpstreamBroke(
                    f"The model server {where} sent nothing for {self._limits.idle_s:g} s.", cause="timeout"
                ) from e
            except httpx.HTTPError as e:
                raise UpstreamBroke(
                    f"The model server {where} broke off its answer ({_why(e)}).", cause="broke-off"
                ) from e
            if chunk:
                yield chunk


def _why(error: httpx.HTTPError) -> str:
    # The text of httpx's errors may hold a URL with credentials in it; the type says enough with the host.
    return type(error).__name__
