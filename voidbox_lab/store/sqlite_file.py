"""The SQLite store's file: its mode, connections to it, and what its errors become. Not for what is in it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from voidbox_lab.errors import ProviderError

BUSY_S = 5.0
"""How long a statement waits for another process's lock (there should be none)."""


def private(path: Path) -> None:
    """Make `path` a file of mode 0600; close one that is open to others. SQLite gives -wal and -shm its mode."""
    # Never opened if it exists: closing it would drop the locks of this process (sqlite.org/howtocorrupt.html).
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the database `path`."""
    # Autocommit: transactions are written out. Each connection is used by one thread at a time.
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[None]:
    """What the disk or SQLite refuses is a `ProviderError` (cause ``store``)."""
    try:
        yield
    except (sqlite3.Error, OSError) as e:
        raise ProviderError(
            f"The store {path} failed ({e}); check the disk's space and the file's permissions.", cause="store"
        ) from e
