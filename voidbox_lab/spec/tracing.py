"""Ids of traces and spans, made of a run's own names, so that whoever makes them makes the same ones.

Source: W3C Trace Context (https://www.w3.org/TR/trace-context/), level 1.
"""

from __future__ import annotations

import hashlib

TRACEPARENT = "TRACEPARENT"
"""The environment variable that OpenTelemetry's programs and libraries take a trace's context from."""


def trace_id(run: str) -> str:
    """The trace of a run: 32 hexadecimal digits."""
    return _digest(run)[:32]


def span_id(run: str, *path: str | int) -> str:
    """A span of a run by its `path`, such as stage, attempt and kind: 16 hexadecimal digits."""
    return _digest(run, *path)[:16]


def work_span(run: str, stage: str, attempt: int) -> str:
    """The span of what an attempt at a stage is for: its agent's, or its command's."""
    return span_id(run, stage, attempt, "work")


def traceparent(run: str, stage: str, attempt: int) -> str:
    """The context in which an attempt's agent or command works, as `TRACEPARENT` holds it."""
    return f"00-{trace_id(run)}-{work_span(run, stage, attempt)}-01"


def _digest(*parts: str | int) -> str:
    # Lengths keep ("a", "bc") and ("ab", "c") apart. All zeros, which is no id, has the chance of a collision.
    text = "".join(f"{len(str(part))}:{part}" for part in ("voidbox", *parts))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
