"""What a renderer of scripted replies is."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from voidbox_lab.gateway.scripted.player import Reply

Json = dict[str, Any]


class Renderer(ABC):
    """One reply in one API. A stream is `head`, a `word` for each piece of the text, `tail`."""

    stream_type: ClassVar[str] = "text/event-stream"

    def __init__(self, reply: Reply, model: str) -> None:
        self.reply, self.model = reply, model
        self.id = secrets.token_hex(10)

    @abstractmethod
    def whole(self) -> bytes:
        """The answer to a request that does not stream."""

    @abstractmethod
    def head(self) -> bytes:
        """All that comes before the text."""

    @abstractmethod
    def word(self, text: str) -> bytes:
        """A piece of the text."""

    @abstractmethod
    def tail(self) -> bytes:
        """All that comes after the text: calls, counts, the end."""
