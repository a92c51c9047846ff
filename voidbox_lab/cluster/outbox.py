"""What an attempt has said and its daemon has not confirmed: numbered, in order, bounded. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from voidbox_lab.cluster.ticket import WINDOW_BYTES, Kind, Message
from voidbox_lab.spec.events import MAX_TEXT, AgentText, Body


@dataclass
class _Said:
    number: int
    kind: Kind
    data: str | AgentText

    @property
    def size(self) -> int:
        return len(self.data.text if isinstance(self.data, AgentText) else self.data) + 100

    def message(self, attempt: str) -> Message:
        data = self.data if isinstance(self.data, str) else self.data.model_dump_json()
        return attempt, self.number, self.kind, data


class Outbox:
    """Messages of one attempt. Text comes token by token, so neighbouring text that waits is joined."""

    def __init__(self, attempt: str, news: Callable[[], None], *, window: int = WINDOW_BYTES) -> None:
        self._attempt, self._news, self._window = attempt, news, window
        self._waiting: deque[_Said] = deque()
        self._size = 0
        self._last = self._taken = 0
        self._confirmed = anyio.Event()

    def post(self, kind: Kind, data: str) -> None:
        """Say it without waiting; for what is bounded elsewhere."""
        self._last += 1
        self._waiting.append(_Said(self._last, kind, data))
        self._size += self._waiting[-1].size
        self._news()

    async def room(self) -> None:
        """Wait while too much is unconfirmed."""
        while self._size > self._window:
            await self._confirmed.wait()

    async def emit(self, body: Body) -> None:
        """Say an event; waits while too much is unconfirmed."""
        await self.room()
        last = self._waiting[-1] if self._waiting else None
        if (
            isinstance(body, AgentText)
            and last is not None
            and last.number > self._taken
            and isinstance(last.data, AgentText)
            and last.data.block == body.block
            and len(last.data.text) + len(body.text) <= MAX_TEXT
        ):
            self._size += len(body.text)
            last.data = AgentText(text=last.data.text + body.text, block=body.block)
            self._news()
        elif isinstance(body, AgentText):
            self._last += 1
            self._waiting.append(_Said(self._last, "event", body))
            self._size += self._waiting[-1].size
            self._news()
        else:
            self.post("event", body.model_dump_json())

    def confirm(self, number: int) -> None:
        """The daemon has everything up to `number`."""
        while self._waiting and self._waiting[0].number <= number:
            self._size -= self._waiting.popleft().size
        self._confirmed.set()
        self._confirmed = anyio.Event()

    async def confirmed(self) -> None:
        """Wait until the daemon has everything."""
        while self._waiting:
            await self._confirmed.wait()

    @property
    def fresh(self) -> bool:
        """Whether there is something that was never taken."""
        return self._last > self._taken

    def take(self, limit: int) -> list[Message]:
        """What is unconfirmed, oldest first, about `limit` bytes of it, again if it was taken before.

        Who takes confirms before it takes again, so what comes again was lost on the way.
        """
        taken: list[Message] = []
        for said in self._waiting:
            if taken and limit < said.size:
                break
            limit -= said.size
            taken.append(said.message(self._attempt))
            self._taken = max(self._taken, said.number)
        return taken

    def again(self) -> None:
        """The last reply did not arrive: what it held counts as never taken."""
        if self._waiting:
            self._taken = self._waiting[0].number - 1
