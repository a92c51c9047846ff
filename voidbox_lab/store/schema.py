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

# `doomed` names runs that are deleted while their events still go, a slice at a time.
_V2 = """
ALTER TABLE runs ADD COLUMN state TEXT NOT NULL DEFAULT 'queued';
UPDATE runs SET state = json_extract(record, '$.state');
CREATE INDEX runs_by_state ON runs (state, created_at);
CREATE TABLE stage_cache (key TEXT NOT NULL PRIMARY KEY, run TEXT NOT NULL, stage TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX stage_cache_by_run ON stage_cache (run);
CREATE TABLE doomed (run TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID;
"""

# A stage's record in a row of its own: a change of one of a thousand stages must not write the others again.
# Their rowids are in the order in which the spec declares them.
_V3 = """
CREATE TABLE run_stages (run TEXT NOT NULL, name TEXT NOT NULL, record TEXT NOT NULL, UNIQUE (run, name));
INSERT INTO run_stages (run, name, record)
    SELECT runs.id, each.key, each.value FROM runs, json_each(runs.record, '$.stages') AS each
    ORDER BY runs.rowid, each.id;
UPDATE runs SET record = json_remove(record, '$.stages');
"""

MIGRATIONS: Sequence[Migration] = (_V1, _V2, _V3)


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
