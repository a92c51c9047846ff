"""Splits a byte stream into whole events: server-sent events (WHATWG HTML, 9.2) or lines of JSON.

Only what the model APIs use: the data of an event. Fields `id` and `retry` are passed over.
"""

from __future__ import annotations

import json
import re
from typing import Any

from voidbox_lab.errors import LimitExceeded

MAX_EVENT = 16 << 20
_BLANK = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class Splitter:
    """Feed bytes, get whole events as raw bytes, their separators included."""

    def __init__(self, *, lines: bool = False, limit: int = MAX_EVENT) -> None:
        self._separator = re.compile(rb"\n") if lines else _BLANK
        self._limit = limit
        self._buffer = bytearray()
        self._seen = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes.

        Raises:
            LimitExceeded: an event is longer than the limit.
        """
        self._buffer += data
        out: list[bytes] = []
        start = 0
        # A separator may straddle two pieces: look back three bytes.
        search_from = max(0, self._seen - 3)
        while match := self._separator.search(self._buffer, search_from):
            out.append(bytes(self._buffer[start : match.end()]))
            start = search_from = match.end()
        del self._buffer[:start]
        self._seen = len(self._buffer)
        if self._seen > self._limit:
            raise LimitExceeded(
                f"An event in a model's answer is longer than {self._limit} bytes.",
                limit="frame",
                value=self._limit,
                unit="bytes",
            )
        return out

    def rest(self) -> bytes:
        """What is left at the end of the stream."""
        rest, self._buffer, self._seen = bytes(self._buffer), bytearray(), 0
        return rest


def event_data(raw: bytes) -> bytes:
    """The data of a server-sent event, or the line itself."""
    if raw.lstrip()[:1] == b"{":
        return raw.strip()
    lines = raw.splitlines()
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def event_json(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in an event; None for a comment, ``[DONE]`` and everything that is not an object."""
    try:
        value = json.loads(event_data(raw))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def encode_event(data: dict[str, Any], *, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
