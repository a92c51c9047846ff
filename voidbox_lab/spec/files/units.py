"""Amounts as people write them: ``1GB``, ``5m``. Plain numbers are megabytes and seconds, as elsewhere."""

from __future__ import annotations

import re

MEMORY_PATTERN = r"^\s*[0-9]+(\.[0-9]+)?\s*([MmGg]([Ii]?[Bb])?)?\s*$"
DURATION_PATTERN = r"^\s*[0-9]+(\.[0-9]+)?\s*([smh]|min)?\s*$"
_MEMORY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([mg])?(?:i?b)?\s*", re.IGNORECASE)
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|m|h)?\s*")
_SECONDS = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}
MAX_DIGITS = 40


def memory_mb(value: object) -> object:
    """``512``, ``"512MB"``, ``"1GB"`` as MiB; what is no text is returned as it is.

    Raises:
        ValueError: text that is no amount, or no whole number of MiB.
    """
    if not isinstance(value, str):
        return value
    found = _MEMORY.fullmatch(value) if re.match(MEMORY_PATTERN, value) and len(value) < MAX_DIGITS else None
    if found is None:
        raise ValueError(f"{value[:MAX_DIGITS]!r} is no amount of memory; write it like 512, 512MB or 1GB")
    amount = float(found[1]) * (1024 if (found[2] or "m").lower() == "g" else 1)
    if amount != int(amount):
        raise ValueError(f"{value!r} is no whole number of megabytes; write it like 512, 512MB or 1GB")
    return int(amount)


def seconds(value: object) -> object:
    """``300``, ``"90s"``, ``"5m"``, ``"1.5h"`` as seconds; what is no text is returned as it is.

    Raises:
        ValueError: text that is no duration.
    """
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value) if len(value) < MAX_DIGITS else None
    if found is None:
        raise ValueError(f"{value[:MAX_DIGITS]!r} is no duration; write it like 300, 90s, 5m or 1h")
    return float(found[1]) * _SECONDS[found[2]]
