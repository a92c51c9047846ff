"""Counts this process's open descriptors of the kinds a device has, so that a test can show that none is left.

Others are not counted: this process also runs other tests, and a thread of theirs may open a file meanwhile.
"""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

KINDS = ("socket", "anon_inode", "pipe", "/memfd", "/dev/shm")


def descriptors(pid: int | None = None) -> Counter[str]:
    """How many of each kind (``socket``, ``anon_inode``, ``/memfd`` …) are open, here or in process `pid`."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid or 'self'}/fd").iterdir():
        try:
            kind = str(entry.readlink()).split(":", maxsplit=1)[0]
        except FileNotFoundError:  # the listing's own
            continue
        if kind.startswith(KINDS):
            found[kind] += 1
    return found


def none_left(before: Counter[str]) -> bool:
    """No more are open than `before`."""
    if descriptors() <= before:
        return True
    gc.collect()  # mappings own a descriptor and go with their last view, which may be in a cycle
    return descriptors() <= before
