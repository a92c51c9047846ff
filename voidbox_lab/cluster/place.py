"""Directories of a process's own, for several that run boxes on one host. Not for the daemon, which is alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from voidbox_lab.errors import UserError
from voidbox_lab.settings import Settings

PLACES = 64
"""Most worker processes of one user on one host."""


@contextmanager
def own_place(settings: Settings) -> Iterator[Settings]:
    """`settings` with runtime and memory directories that no other process uses at this time.

    They have the least number that is free, by flock(2), so that what a killed process left in its directories
    is found by the next one.

    Raises:
        UserError: there are too many, or the directories cannot be made.
    """
    settings.prepare()
    for number in range(PLACES):
        name = f"w{number}"
        handle = os.open(settings.runtime / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield replace(settings, runtime=settings.runtime / name, shm=settings.shm / name).prepare()
            return
        finally:
            os.close(handle)
    raise UserError(f"{PLACES} workers run on this host for this user already; end some.", cause="too-many")
