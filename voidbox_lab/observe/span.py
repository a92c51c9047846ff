"""A span as data: what lasted from when to when, within what, and how it ended. Knows nothing of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from voidbox_lab.spec import Tokens

What = Literal["run", "stage", "phase", "agent", "command", "model", "tool", "egress"]
Status = Literal["ok", "error", "cancelled", "open"]
Value = str | bool | int | float | tuple[str, ...]


@dataclass(frozen=True)
class Usage:
    """What model calls took."""

    calls: int = 0
    tokens: Tokens = Tokens()  # noqa: RUF009 - frozen
    cost_usd: float | None = 0.0
    """Dollars; None: a call is unpriced."""

    def __add__(self, other: Usage) -> Usage:
        unpriced = self.cost_usd is None or other.cost_usd is None
        cost = None if unpriced else (self.cost_usd or 0.0) + (other.cost_usd or 0.0)
        return Usage(self.calls + other.calls, self.tokens + other.tokens, cost)


@dataclass(frozen=True)
class Span:
    """One span of a run. Text in it that came out of a guest is bounded and printable, and not escaped."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    what: What
    start: float
    """UNIX time, seconds; so is `end`."""
    end: float | None = None
    """None: it goes on."""
    status: Status = "open"
    message: str = ""
    """Why it did not succeed, without contents of messages unless these were asked for."""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    stage: str | None = None
    attempt: int = 0
    usage: Usage | None = None
    """Of a model call, or of all within it; None: it asked no model."""

    @property
    def kind(self) -> Literal["client", "internal"]:
        """OpenTelemetry's kind."""
        return "client" if self.what in {"model", "egress"} else "internal"

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it goes on."""
        return None if self.end is None else max(0.0, self.end - self.start)


def printable(text: str, most: int = 200) -> str:
    """The beginning of `text`, with everything that is not printable replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:most])
