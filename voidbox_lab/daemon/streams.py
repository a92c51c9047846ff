"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) from a task that sends.

The task runs in the response's own task group: when the client goes away it is cancelled, so that
whatever it holds open (a box) is closed. Not an async generator: cancel scopes cannot span its yields.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from voidbox_lab.daemon import ratelimit
from voidbox_lab.errors import ProviderError, VoidboxError
from voidbox_lab.spec.api import Failed

HEARTBEAT_S = 10
SEND_S = 60.0
"""A client that takes nothing for so long is gone."""

Sender = Callable[[str, BaseModel, int | None], Awaitable[None]]
"""`await send(event, data, id)`; waits while the client is slow."""


class EventStream(EventSourceResponse):
    """An event stream that takes one of its listener's places for such; 429, and no work done, if none is left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream."""
        await ratelimit.streaming(super().__call__)(scope, receive, send)


RawSender = Callable[[bytes], Awaitable[None]]
"""`await send(chunk)`, whole events as they go over the wire; waits while the client is slow."""


def respond(work: Callable[[Sender], Awaitable[None]]) -> EventStream:
    """A response that streams what `work` sends until it returns. An error is the last event, ``failed``."""
    return _respond(lambda send, _raw: work(send))


def respond_raw(work: Callable[[RawSender], Awaitable[None]]) -> EventStream:
    """As `respond`, of events that are encoded already."""
    return _respond(lambda _send, raw: work(raw))


def _respond(work: Callable[[Sender, RawSender], Awaitable[None]]) -> EventStream:
    send_stream, receive_stream = anyio.create_memory_object_stream[dict[str, Any] | bytes](64)

    async def run() -> None:
        async with send_stream:

            async def send(event: str, data: BaseModel, number: int | None = None) -> None:
                await _put(send_stream, event, data, number)

            try:
                await work(send, send_stream.send)
            except VoidboxError as e:
                await send("failed", Failed(error=e.to_dict()))
            except Exception as e:
                fault = ProviderError(
                    f"The daemon failed ({type(e).__name__}: {e}); its log says why.", cause="internal"
                )
                await send("failed", Failed(error=fault.to_dict()))
                raise

    return EventStream(receive_stream, ping=HEARTBEAT_S, sep="\n", data_sender_callable=run, send_timeout=SEND_S)


async def _put(
    stream: MemoryObjectSendStream[dict[str, Any] | bytes], event: str, data: BaseModel, number: int | None
) -> None:
    item = {"event": event, "data": one_line(data)}
    if number is not None:
        item["id"] = str(number)
    await stream.send(item)


def one_line(data: BaseModel) -> str:
    """JSON in ASCII: readers differ in which other characters (U+2028, U+0085) they take for line ends."""
    text = data.model_dump_json()
    return text if text.isascii() else json.dumps(json.loads(text), separators=(",", ":"))
