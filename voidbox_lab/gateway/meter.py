"""Reads token counts from answers that pass by, streamed or not, in each API's own words.

Where a count is missing the call stays unmetered (`tokens` is None) rather than free. Counts are the
provider's word; a negative or absurd one is taken as missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from voidbox_lab.gateway.api import Api
from voidbox_lab.gateway.sse import Splitter, event_json
from voidbox_lab.spec import Tokens

_MAX = 1 << 40


class Meter:
    """One per call. Feed it whole events (`event`) or a whole body (`body`)."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._usage: dict[str, int] | None = None

    @property
    def tokens(self) -> Tokens | None:
        """What was counted so far; None: nothing yet."""
        return Tokens(**self._usage) if self._usage is not None else None

    def body(self, data: bytes) -> None:
        """Read a whole answer that did not stream."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            self._read(value.get("usage") if self._api is not Api.OLLAMA else value)

    def event(self, data: Mapping[str, Any]) -> None:
        """Read one event of a stream."""
        match self._api:
            case Api.MESSAGES if data.get("type") == "message_start":
                message = data.get("message")
                self._read(message.get("usage") if isinstance(message, dict) else None)
            case Api.MESSAGES if data.get("type") == "message_delta":
                self._read(data.get("usage"))
            case Api.CHAT:
                self._read(data.get("usage"))
            case Api.RESPONSES if data.get("type") in {
                "response.completed",
                "response.incomplete",
                "response.failed",
            }:
                response = data.get("response")
                self._read(response.get("usage") if isinstance(response, dict) else None)
            case Api.OLLAMA if data.get("done") is True:
                self._read(data)

    def _read(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        found = _READERS[self._api](usage)
        # Nothing but zeros is what translated and local servers send when they did not count.
        if any(found.values()) or (found and self._usage is not None):
            # Later counts replace earlier ones: message_delta's are cumulative.
            self._usage = {**(self._usage or {}), **found}


def _count(usage: Mapping[str, Any], name: str, *more: str) -> int | None:
    value: Any = usage.get(name)
    for part in more:
        value = value.get(part) if isinstance(value, dict) else None
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX
    return value if good else None


def _given(**counts: int | None) -> dict[str, int]:
    return {k: v for k, v in counts.items() if v is not None}


def _messages(u: Mapping[str, Any]) -> dict[str, int]:
    return _given(
        input=_count(u, "input_tokens"),
        output=_count(u, "output_tokens"),
        cache_read=_count(u, "cache_read_input_tokens"),
        cache_write=_count(u, "cache_creation_input_tokens"),
    )


def _openai(u: Mapping[str, Any], total: str, output: str, details: str) -> dict[str, int]:
    prompt, cached = _count(u, total), _count(u, details, "cached_tokens") or 0
    if prompt is None:
        return _given(output=_count(u, output))
    cached = min(cached, prompt)
    # OpenAI's prompt tokens include the cached ones; ours do not.
    return _given(input=prompt - cached, cache_read=cached, output=_count(u, output))


def _chat(u: Mapping[str, Any]) -> dict[str, int]:
    return _openai(u, "prompt_tokens", "completion_tokens", "prompt_tokens_details")


def _responses(u: Mapping[str, Any]) -> dict[str, int]:
    return _openai(u, "input_tokens", "output_tokens", "input_tokens_details")


def _ollama(u: Mapping[str, Any]) -> dict[str, int]:
    return _given(input=_count(u, "prompt_eval_count"), output=_count(u, "eval_count"))


_READERS = {Api.MESSAGES: _messages, Api.CHAT: _chat, Api.RESPONSES: _responses, Api.OLLAMA: _ollama}


class StreamMeter:
    """Passes a stream on as it comes while a `Meter` reads along.

    With `hide_usage` (the client did not ask for a usage chunk that the gateway asked for) whole events
    are passed and that one is left out.
    """

    def __init__(self, meter: Meter, api: Api, *, hide_usage: bool = False) -> None:
        self._meter = meter
        self._splitter = Splitter(lines=api is Api.OLLAMA)
        self._hide = hide_usage

    def feed(self, chunk: bytes) -> bytes:
        """What to pass on now that `chunk` has come; b"" if an event is still incomplete."""
        return self._take(chunk, self._splitter.feed(chunk))

    def end(self) -> bytes:
        """What is left to pass on at the end."""
        rest = self._splitter.rest()
        passed = self._take(b"", [rest] if rest else [])
        return passed if self._hide else b""

    def _take(self, chunk: bytes, events: list[bytes]) -> bytes:
        kept = []
        for raw in events:
            data = event_json(raw)
            if data is not None:
                self._meter.event(data)
                if self._hide and data.get("choices") == [] and data.get("usage"):
                    continue
            kept.append(raw)
        return b"".join(kept) if self._hide else chunk
