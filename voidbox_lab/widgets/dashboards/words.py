"""Figures and times as dashboards write them."""

from __future__ import annotations

import math
from datetime import datetime, tzinfo

from voidbox_lab.observe.quantities import seconds


def dollars(usd: float | None) -> str:
    """``$1,204``, ``$12.40``, ``$0.0042``, ``$0``; ``unpriced`` for None and NaN."""
    if usd is None or math.isnan(usd):
        return "unpriced"
    if usd >= 1000:
        return f"${usd:,.0f}"
    if usd >= 1:
        return f"${usd:.2f}"
    return f"${usd:.4f}" if usd >= 0.00005 else "$0" if usd == 0 else "<$0.0001"


def number(value: float) -> str:
    """``812``, ``41,200``, ``1.2 M``, ``3.4 G``."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:,.0f}"


def took(value: float | None) -> str:
    """A duration; a dash where there is none yet."""
    return "-" if value is None or math.isnan(value) else seconds(value)


def when(at: float, zone: tzinfo | None) -> str:
    """``3 Nov 14:05`` of a UNIX time."""
    moment = datetime.fromtimestamp(at, zone)
    return f"{moment.day} {moment:%b %H:%M}"
