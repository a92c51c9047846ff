"""A Chat Completions server, asked and answering in Anthropic Messages."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

from voidbox_lab.gateway.api import Api, error_body, error_message, stream_error
from voidbox_lab.gateway.sse import Splitter, encode_event, event_json
from voidbox_lab.gateway.translate.request import to_chat
from voidbox_lab.gateway.translate.response import to_message
from voidbox_lab.gateway.translate.stream import StreamTranslator
from voidbox_lab.gateway.upstream import Answer, Ask, Upstream, UpstreamBroke

MAX_BODY = 64 << 20


class TranslatedUpstream:
    """Wraps `chat`; see `Upstream`."""

    def __init__(self, chat: Upstream, *, openai_itself: bool = False) -> None:
        self._chat = chat
        self._openai_itself = openai_itself

    @asynccontextmanager
    async def open(self, ask: Ask) -> AsyncGenerator[Answer]:
        """See `Upstream.open`; also raises `UserError` for what is no Messages request."""
        body = to_chat(ask.body, openai_itself=self._openai_itself)
        model = str(ask.body.get("model"))
        async with self._chat.open(replace(ask, api=Api.CHAT, body=body)) as answer:
            if answer.streams:
                yield replace(answer, chunks=_events(answer, model))
            else:
                data = await _all(answer)
                said = (
                    error_body(Api.MESSAGES, answer.status, error_message(data))
                    if answer.status >= 400
                    else _message(data, model)
                )
                headers = {**answer.headers, "content-type": "application/json"}
                yield replace(answer, headers=headers, chunks=_once(said))


async def _events(answer: Answer, model: str) -> AsyncGenerator[bytes]:
    translator, splitter = StreamTranslator(model), Splitter()
    done = False
    async for chunk in answer.chunks:
        for raw in splitter.feed(chunk):
            data = event_json(raw)
            if data is None:
                done = done or b"[DONE]" in raw
                continue
            if "error" in data:
                yield stream_error(Api.MESSAGES, 500, error_message(json.dumps(data).encode()))
                return
            if said := b"".join(encode_event(e, name=e["type"]) for e in translator.feed(data)):
                yield said
    if not done and not translator.ended:
        raise UpstreamBroke("The model server ended its answer before it was complete.", cause="broke-off")
    yield b"".join(encode_event(e, name=e["type"]) for e in translator.finish())


async def _all(answer: Answer) -> bytes:
    data = bytearray()
    async for chunk in answer.chunks:
        data += chunk
        if len(data) > MAX_BODY:
            raise UpstreamBroke(f"The model server's answer is larger than {MAX_BODY} bytes.", cause="too-large")
    return bytes(data)


def _message(data: bytes, model: str) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise UpstreamBroke("The model server's answer is not JSON.", cause="shape") from e
    if not isinstance(value, dict):
        raise UpstreamBroke("The model server's answer is not a JSON object.", cause="shape")
    return json.dumps(to_message(value, model)).encode()


async def _once(data: bytes) -> AsyncGenerator[bytes]:
    yield data
