"""How much of its limits a stage has used, and the waits of its proxy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from voidbox_lab.spec.egress import EgressLimits

MINUTE_S = 60.0


@dataclass(frozen=True)
class Bounds:
    """Sizes in bytes, waits in seconds. The defaults suit people's programs; tests shorten them."""

    head_bytes: int = 16 << 10
    """Longest head of a request."""
    answer_bytes: int = 64 << 10
    """Longest head of a response that is passed on."""
    head_s: float = 15.0
    """Until a request's head is there, from connecting on."""
    connect_s: float = 20.0
    """Until the name is resolved and one of its addresses connected."""
    idle_s: float = 300.0
    """Without a byte in either direction."""
    record_s: float = 5.0
    """For recording a connection's end, where the stage ends as well."""
    linger_s: float = 1.0
    """For a refused client to read why."""
    turned_away: int = 64
    """Connections beyond the limit at which one is told why; beyond that they are just closed."""


class Usage:
    """What a stage has used of its `EgressLimits`."""

    def __init__(self, limits: EgressLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._begun: deque[float] = deque()
        self.open = 0
        """Connections now, those that are being turned away included."""
        self._bytes, self._most = 0, limits.mb << 20

    def enter(self) -> str | None:
        """One more connection, until `leave`; if it hits a limit, the limit's name."""
        self.open += 1
        now = self._clock()
        while self._begun and self._begun[0] <= now - MINUTE_S:
            self._begun.popleft()
        if len(self._begun) >= self._limits.per_minute:
            return "per_minute"
        self._begun.append(now)
        if self.open > self._limits.connections:
            return "connections"
        return "mb" if self._bytes >= self._most else None

    def leave(self) -> None:
        """A connection is over."""
        self.open -= 1

    def crowded(self, spare: int) -> bool:
        """Whether there are so many that one more is not even told."""
        return self.open >= self._limits.connections + spare

    def moved(self, count: int) -> bool:
        """`count` bytes went through; whether that was still within the limit."""
        self._bytes += count
        return self._bytes <= self._most

    def sentence(self, limit: str) -> str:
        """Why `limit` ends or refuses a connection, and what to do."""
        value = getattr(self._limits, limit)
        words = {
            "connections": f"{value} connections at once",
            "per_minute": f"{value} new connections in a minute",
            "mb": f"{value} MiB in all",
        }[limit]
        return f"the stage has had its {words} through the proxy; raise egress_limits.{limit} of its policy"
