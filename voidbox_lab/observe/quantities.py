"""Quantities as people write them: durations, numbers of things, costs, sizes."""

from __future__ import annotations

from voidbox_lab.spec.run import Tokens


def seconds(value: float) -> str:
    """A duration as a person writes it: ``0.42 s``, ``12.3 s``, ``3 min 07 s``, ``2 h 05 min``."""
    if value < 1:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(n: int, noun: str) -> str:
    """``1 turn``, ``1,200 turns``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def tokens(t: Tokens) -> str:
    """All tokens, cached ones included."""
    return count(t.total, "token")


def cost(usd: float | None, sources: set[str | None]) -> str:
    """Dollars; ``unpriced`` where a price is missing; ``no cost`` where no model was asked."""
    if usd == 0 and sources <= {"scripted", None}:
        return "no cost"
    return dollars(usd)


def dollars(usd: float | None) -> str:
    """``$1.25``, ``$0.0031``, ``<$0.0001``; ``unpriced`` for None."""
    if usd is None:
        return "unpriced"
    if usd == 0:
        return "$0"
    return f"${usd:.2f}" if usd >= 1 else f"${usd:.4f}" if usd >= 0.0001 else "<$0.0001"


def size(number: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1024 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError
