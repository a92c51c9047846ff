"""Raw samples, what is said of them, and what they are held against. No measuring here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Unit = Literal["s", "MB", "% of a core"]


@dataclass(frozen=True)
class Series:
    """Samples of one thing, in the order they were taken."""

    name: str
    unit: Unit
    samples: tuple[float, ...]

    @property
    def p50(self) -> float:
        """The median."""
        return quantile(self.samples, 0.50)

    @property
    def p95(self) -> float:
        """Of fewer than 20 samples, the largest."""
        return quantile(self.samples, 0.95)

    @property
    def p99(self) -> float:
        """Of fewer than 100 samples, the largest."""
        return quantile(self.samples, 0.99)


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that `share` of all do not exceed (nearest rank); NaN of none."""
    if not samples:
        return math.nan
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


@dataclass(frozen=True)
class Figure:
    """One measurement beside its floor, and what is wanted of it."""

    bench: str
    subject: Series
    floor: Series | None = None
    wanted_ratio: float | None = None
    """Most that `ratio` should be."""
    wanted: float | None = None
    """Most that the subject's median should be, in its unit."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Median over median."""
        return self.subject.p50 / self.floor.p50 if self.floor and self.floor.p50 else None

    @property
    def met(self) -> bool | None:
        """Whether it is as good as wanted; None where nothing is."""
        if self.wanted_ratio is not None and self.ratio is not None:
            return self.ratio <= self.wanted_ratio
        return None if self.wanted is None else self.subject.p50 <= self.wanted

    def to_dict(self) -> dict[str, Any]:
        """With raw samples, for JSON."""
        said = {"p50": self.subject.p50, "p95": self.subject.p95, "p99": self.subject.p99}
        return asdict(self) | said | {"ratio": self.ratio, "met": self.met}


@dataclass
class Report:
    """All figures of a run and the machine they are from."""

    machine: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"machine": self.machine, "figures": [figure.to_dict() for figure in self.figures]}
