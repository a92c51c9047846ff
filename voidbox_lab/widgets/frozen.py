"""Copies of frozen dataclasses, fast: the fold makes some for each of ten thousand events a second."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def replaced(value: T, **fields: Any) -> T:
    """As `dataclasses.replace`, at a tenth of its time: no ``__init__``, so for classes without ``__post_init__``
    and ``__slots__``, and for names of fields that exist."""
    made = object.__new__(type(value))
    made.__dict__.update(value.__dict__, **fields)
    return made
