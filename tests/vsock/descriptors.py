"""Counts this process's open descriptors, so that a test can show that none is left."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path


def descriptors() -> Counter[str]:
    """How many of each kind (``socket``, ``anon_inode``, ``/memfd`` …) are open."""
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[str(entry.readlink()).split(":", maxsplit=1)[0]] += 1
        except FileNotFoundError:  # the listing's own
            continue
    return found


def none_left(before: Counter[str]) -> bool:
    """No more are open than `before`."""
    if descriptors() <= before:
        return True
    gc.collect()  # mappings own a descriptor and go with their last view, which may be in a cycle
    return descriptors() <= before
