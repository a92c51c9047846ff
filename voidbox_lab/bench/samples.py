"""Raw samples, what is said of them, and what they are held against. No measuring here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from voidbox_lab.errors import TroubleKind

Unit = Literal["s", "MB", "kB", "% of a core", "events", "events/s", "messages/s"]


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
        """Median over median; None where either is missing or the floor's is nothing."""
        if self.floor is None or not self.floor.p50:
            return None
        return _number(self.subject.p50 / self.floor.p50)

    @property
    def met(self) -> bool | None:
        """Whether it is as good as wanted; None where nothing is, or nothing was measured."""
        if math.isnan(self.subject.p50):
            return None
        if self.wanted_ratio is not None and self.ratio is not None:
            return self.ratio <= self.wanted_ratio
        return None if self.wanted is None else self.subject.p50 <= self.wanted

    def to_dict(self) -> dict[str, Any]:
        """With raw samples, for JSON, which has no NaN: null is what could not be measured."""
        data = asdict(self)
        for series in (data["subject"], data["floor"]):
            if series is not None:
                series["samples"] = [_number(sample) for sample in series["samples"]]
        said = {"p50": self.subject.p50, "p95": self.subject.p95, "p99": self.subject.p99}
        data |= {name: _number(value) for name, value in said.items()}
        return data | {"ratio": self.ratio, "met": self.met}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Failure:
    """A measurement that gave no figures."""

    bench: str
    message: str
    """One sentence."""
    kind: TroubleKind


@dataclass
class Report:
    """All figures of a run, what could not be measured, and the machine they are from."""

    machine: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "machine": self.machine,
            "figures": [figure.to_dict() for figure in self.figures],
            "failures": [asdict(failure) for failure in self.failures],
        }
