"""Sees a stage's events go by, and knows by them what its connections were made for. Bounded, whatever is sent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from voidbox_lab.spec.events import Body, Egress, ToolCall, ToolResult

MAX_CALLS = 256
"""Tool calls remembered; of a connection that is older than these it is not said what it was made for."""


@dataclass
class _Call:
    id: str
    began: float
    ended: float | None = None


class Witness:
    """Passes events on to `emit`."""

    def __init__(
        self, emit: Callable[[Body], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._emit, self._clock = emit, clock
        self._calls: deque[_Call] = deque(maxlen=MAX_CALLS)

    async def emit(self, body: Body) -> None:
        """Remember which tool calls are open; pass `body` on."""
        if isinstance(body, ToolCall):
            self._calls.append(_Call(body.id, self._clock()))
        elif isinstance(body, ToolResult):
            for call in self._calls:
                if call.id == body.id and call.ended is None:
                    call.ended = self._clock()
        await self._emit(body)

    async def egress(self, body: Body) -> None:
        """Pass on what the egress proxy records, with the tool call that was open, if just one was."""
        if isinstance(body, Egress):
            began = self._clock() - body.duration_s
            # At any time of its life: the call's result may have come here before the connection's end did.
            open_ = [call.id for call in self._calls if call.ended is None or call.ended >= began]
            if len(open_) == 1:
                body = body.model_copy(update={"tool_call": open_[0]})
        await self._emit(body)
