"""A ticket on its way, as its daemon sees it: which attempt counts, and what of it is heard. No I/O.

At most one attempt of a ticket counts at a time. Whatever another one says is dropped: it is of a worker that was
taken for lost.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from voidbox_lab.cluster.ticket import Kind, Ticket

if TYPE_CHECKING:
    from voidbox_lab.cluster.link import Link

Heard = Kind | Literal["lost", "failed", "held"]
"""What a message is; or: the worker was lost (its host), Dask gave up (an exception), its run is paused."""


@dataclass(frozen=True)
class News:
    """Something about the ticket, in order."""

    what: Heard
    data: str = ""
    error: BaseException | None = None


@dataclass(eq=False)
class Flight:
    """One ticket between its submission and its end."""

    ticket: Ticket
    attempt: str | None = None
    """The one that counts."""
    link: Link | None = None
    last: deque[str] = field(default_factory=lambda: deque(maxlen=16))
    """Attempts that counted once."""
    _number: int = 0

    def __post_init__(self) -> None:
        send, receive = anyio.create_memory_object_stream[News](math.inf)  # bounded by `Link`
        self._send: MemoryObjectSendStream[News] = send
        self.news: MemoryObjectReceiveStream[News] = receive

    @property
    def waiting(self) -> int:
        """How much was heard and not looked at."""
        return self.news.statistics().current_buffer_used

    def hear(self, link: Link, attempt: str, number: int, kind: Kind, data: str) -> bool:
        """Take a message; False if its attempt does not count."""
        if kind == "begun" and attempt not in self.last:
            # Dask gives a ticket to another worker only after it lost the one it had.
            self.lose()
            self.attempt, self.link, self._number = attempt, link, 0
            self.last.append(attempt)
        if attempt != self.attempt:
            return False
        if number != self._number + 1:
            return number <= self._number
        self._number = number
        self.tell(News(kind, data))
        if kind == "end":
            self.attempt = self.link = None
        return True

    def lose(self) -> None:
        """The worker of the attempt that counts is gone, or that attempt is."""
        if self.attempt is not None and self.link is not None:
            host = self.link.host
            self.attempt = self.link = None
            self.tell(News("lost", host))

    def give_up(self) -> None:
        """Nothing that any attempt says counts any more."""
        self.attempt = self.link = None

    def tell(self, news: News) -> None:
        """Put it behind what was heard before."""
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._send.send_nowait(news)

    def close(self) -> None:
        """Nobody looks any more."""
        self._send.close()
        self.news.close()
