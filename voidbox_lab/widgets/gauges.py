"""Meters of what is spent against a budget, and lines of how a box is, as the numbers that a template draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from voidbox_lab.observe.quantities import count, dollars, seconds, size
from voidbox_lab.spec.budget import Budget
from voidbox_lab.widgets.vitals import Vitals

SPARK_WIDTH, SPARK_HEIGHT = 60, 14
"""A line's view box, in SVG user units."""
NEAR = 0.8
"""From this share of a budget on its meter warns."""
LEAST_RATE = 64 * 1024.0
"""A line of bytes per second reaches its top at this, or at its own largest value."""


@dataclass(frozen=True)
class Gauge:
    """Something spent, and the most that may be."""

    name: str
    text: str
    share: float
    """0 to 1."""

    @property
    def level(self) -> str:
        """``ok``, ``near`` or ``over``."""
        return "over" if self.share >= 1 else "near" if self.share >= NEAR else "ok"

    @property
    def percent(self) -> int:
        """Its share, whole."""
        return int(100 * self.share)


def gauges(budget: Budget, used: int, usd: float | None, elapsed: float) -> list[Gauge]:
    """One for each bound of `budget`, against `used` tokens, dollars (None: unpriced) and seconds."""
    found = []
    if budget.usd is not None:
        spent = "unpriced" if usd is None else dollars(usd)
        found.append(Gauge("cost", f"{spent} of {_bound(budget.usd)}", _share(usd or 0.0, budget.usd)))
    if budget.tokens is not None:
        found.append(Gauge("tokens", f"{used:,} of {count(budget.tokens, 'token')}", _share(used, budget.tokens)))
    if budget.seconds is not None:
        text = f"{seconds(elapsed)} of {seconds(budget.seconds)}"
        found.append(Gauge("time", text, _share(elapsed, budget.seconds)))
    return found


def _bound(usd: float) -> str:
    return f"${usd:.2f}" if usd >= 0.01 else f"${usd:g}"


def _share(spent: float, most: float) -> float:
    return min(1.0, max(0.0, spent / most))


@dataclass(frozen=True)
class Line:
    """A row of samples, ready to draw."""

    name: str
    text: str
    """The last sample."""
    about: str
    """What it is of, in a few words."""
    points: str


def lines(vitals: Vitals) -> Iterator[Line]:
    """Processor, memory, disk and network of a box; nothing before the first sample."""
    if not vitals.cpu:
        return
    used, total = (size(kb * 1024) for kb in (vitals.memory_used_kb, vitals.memory_total_kb))
    yield Line("CPU", f"{vitals.cpu[-1]:.0%}", "busy share of all vCPUs", spark(vitals.cpu))
    yield Line("memory", used, f"in use, of {total}", spark(vitals.memory))
    full = f", {size(vitals.disk_used_kb * 1024)} of {size(vitals.disk_total_kb * 1024)} full"
    yield _rate("disk", vitals.disk, "read and written" + (full if vitals.disk_total_kb else ""))
    yield _rate("network", vitals.network, "to and from gateway and egress proxy")


def _rate(name: str, samples: tuple[float, ...], about: str) -> Line:
    top = max(LEAST_RATE, *samples)
    return Line(name, f"{size(samples[-1])}/s", about, spark(tuple(value / top for value in samples)))


def spark(values: tuple[float, ...]) -> str:
    """Points of an SVG polyline, newest at the right; values from 0 to 1. Empty below two samples."""
    if len(values) < 2:
        return ""
    step = SPARK_WIDTH / (len(values) - 1)
    top, span = 1.0, SPARK_HEIGHT - 2.0
    return " ".join(f"{i * step:.1f},{top + span * (1 - v):.1f}" for i, v in enumerate(values))


def summary(vitals: Vitals) -> str:
    """The last sample on one line."""
    shown = [f"{line.name} {line.text}" for line in lines(vitals) if line.name != "network" or any(vitals.network)]
    if vitals.processes:
        shown.append("1 process" if vitals.processes == 1 else f"{vitals.processes:,} processes")
    return ", ".join(shown)
