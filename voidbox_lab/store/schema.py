"""The SQLite schema and its migrations, versioned by ``PRAGMA user_version``.

Version N is reached from N-1 by ``MIGRATIONS[N-1]``, in one transaction. A migration is a script or a
function; once released it never changes, the next one is added behind it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from voidbox_lab.errors import UserError

Migration = str | Callable[[sqlite3.Connection], None]

_V1 = """
CREATE TABLE runs (
    id          TEXT NOT NULL UNIQUE,
    created_at  REAL NOT NULL,
    finished_at REAL,
    spec        TEXT NOT NULL,
    record      TEXT NOT NULL
);
CREATE INDEX runs_by_time ON runs (created_at);
CREATE INDEX runs_unfinished ON runs (finished_at) WHERE finished_at IS NULL;
CREATE TABLE events (
    run   TEXT NOT NULL,
    seq   INTEGER NOT NULL,
    at    REAL NOT NULL,
    stage TEXT,
    body  TEXT NOT NULL,
    PRIMARY KEY (run, seq)
) WITHOUT ROWID;
"""

MIGRATIONS: Sequence[Migration] = (_V1,)


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring `connection`'s database to the last of `migrations`.

    Raises:
        UserError: the database is newer than that.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise UserError(
            f"The store {path} has schema {version}, this release knows {len(migrations)}; "
            "use the newer voidbox-lab that wrote it, or set VOIDBOX_HOME to another directory."
        )
    for number, migration in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if isinstance(migration, str):
                # Not executescript(): that commits first. No statement of ours holds a semicolon inside.
                for statement in filter(None, map(str.strip, migration.split(";"))):
                    connection.execute(statement)
            else:
                migration(connection)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
