"""Bounds of the gateway: sizes in bytes, waits in seconds. Every wait in it is one of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The defaults suit interactive agents; tests shorten them."""

    request_bytes: int = 32 << 20
    """Largest request body; Anthropic's own limit."""
    response_bytes: int = 64 << 20
    """Largest answer that does not stream, and largest stream."""
    concurrent: int = 16
    """Requests of one stage at the same time, those still being received included; more are answered 429."""
    stage_bytes: int = 64 << 20
    """Bytes of request bodies that one stage may have in hand at the same time; more are answered 429."""
    stage_values: int = 2_000_000
    """Values in these bodies, by their braces, brackets, commas and colons, each of which may cost 100 bytes once
    parsed; more are answered 429, or 413 if it is one request alone."""
    receive_s: float = 60.0
    """Until a guest has sent its whole request."""
    connect_s: float = 10.0
    """Until the upstream is connected, TLS included."""
    first_byte_s: float = 600.0
    """Until the upstream begins to answer; a long answer that does not stream takes its time before."""
    idle_s: float = 300.0
    """Between two pieces of an answer, in either direction."""
