"""Bytes to lines, bounded: a guest that never sends a newline costs one buffer, not the host's memory."""

from __future__ import annotations

MAX_LINE = 4 << 20
"""Longest line passed on, in bytes. An agent's event holds a whole tool result, which may be large."""


class Lines:
    """Splits a stream at newlines. A line longer than `limit` is cut there and its rest dropped."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._held = bytearray()
        self._dropping = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without their newlines and without empty ones."""
        out = []
        *ends, tail = chunk.split(b"\n")
        for end in ends:
            self._take(end)
            if self._held:
                out.append(bytes(self._held).removesuffix(b"\r"))
            self._held.clear()
            self._dropping = False
        self._take(tail)
        return out

    def rest(self) -> bytes:
        """What the stream ended with instead of a newline."""
        held = bytes(self._held)
        self._held.clear()
        return held

    def _take(self, piece: bytes) -> None:
        if self._dropping:
            return
        room = self._limit - len(self._held)
        self._held += piece[:room]
        self._dropping = len(piece) > room
