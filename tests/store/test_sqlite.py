"""SQLite against the contract, and what is its own: durability, schema, bounds, damage."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.store.conformance import StoreContract, run_spec, text
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.spec.events import RunChanged
from voidbox_lab.store import Entry, SqliteStore, Store
from voidbox_lab.store.schema import MIGRATIONS, migrate


class TestSqlite(StoreContract):
    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Callable[[], Awaitable[Store]]:
        return lambda: SqliteStore.open(tmp_path / "runs.sqlite")


_KILLED = """
import anyio, sys
from pathlib import Path
from tests.store.conformance import run_spec, text
from voidbox_lab.store import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    await store.create_run("r1", run_spec(), at=0)
    while True:
        event = (await store.append("r1", [text("x")]))[-1]
        print(event.seq, flush=True)

anyio.run(main)
"""


@pytest.mark.anyio
async def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    """The database, its log and its index are 0600 under any umask, and one that was open is closed."""
    path = tmp_path / "store" / "runs.sqlite"

    def modes() -> dict[str, str]:
        return {p.name: oct(p.stat().st_mode & 0o777) for p in path.parent.iterdir()}

    private = {f"runs.sqlite{end}": "0o600" for end in ("", "-wal", "-shm")}
    before = os.umask(0o022)
    try:
        for _ in range(2):
            store = await SqliteStore.open(path)
            await store.list_runs()
            assert modes() == private
            await store.aclose()
            path.chmod(0o644)
    finally:
        os.umask(before)
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.anyio
async def test_acknowledged_events_survive_kill_9(tmp_path: Path) -> None:
    """A writer is killed in the middle of writing; all it acknowledged is there, numbered without gaps."""
    path = tmp_path / "runs.sqlite"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _KILLED, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    ) as writer:
        assert writer.stdout
        seen = 0
        while seen < 50:
            seen = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        seen = max([seen, *map(int, writer.stdout.read().split())])
    store = await SqliteStore.open(path)
    events = await store.read_events("r1", limit=5000)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert len(events) >= seen
    await store.aclose()


@pytest.mark.anyio
async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    await (await SqliteStore.open(path)).aclose()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="schema 99"):
        await SqliteStore.open(path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.sqlite", isolation_level=None)
    migrate(connection, tmp_path)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, tmp_path, [*MIGRATIONS, "CREATE TABLE extra (x); SELECT no_such_column FROM runs"])
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'extra'").fetchall()
    migrate(connection, tmp_path, [*MIGRATIONS, lambda c: c.execute("CREATE TABLE extra (x)") and None])
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    connection.close()


@pytest.mark.anyio
async def test_a_run_at_its_bound_can_still_end(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "runs.sqlite", max_events=3)
    await store.create_run("r1", run_spec(), at=0)
    await store.append("r1", [text("x")] * 3)
    with pytest.raises(LimitExceeded, match="3 events"):
        await store.append("r1", [text("x")])
    ended = await store.append("r1", [Entry(RunChanged(state="failed"), None, 1)])
    assert ended[0].seq == 4
    await store.aclose()


@pytest.mark.anyio
async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "runs.sqlite").write_bytes(b"not a database at all, sorry" * 100)
    with pytest.raises(ProviderError, match="failed") as caught:
        await SqliteStore.open(tmp_path / "runs.sqlite")
    assert caught.value.cause == "store"


@pytest.mark.anyio
async def test_a_failed_transaction_leaves_the_numbering_right(tmp_path: Path) -> None:
    """After a write the medium refuses, the next one continues where the last acknowledged one stopped."""
    path = tmp_path / "runs.sqlite"
    store = await SqliteStore.open(path)
    await store.create_run("r1", run_spec(), at=0)
    await store.append("r1", [text("a")])
    with sqlite3.connect(path) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(ProviderError, match="disk full"):
        await store.append("r1", [text("b")])
    with sqlite3.connect(path) as other:
        other.execute("DROP TRIGGER full")
    assert [e.seq for e in await store.append("r1", [text("c")])] == [2]
    await store.aclose()


@pytest.mark.anyio
async def test_closing_ends_the_thread(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "runs.sqlite")
    assert any(t.name == "voidbox-store" for t in threading.enumerate())
    await store.aclose()
    assert not any(t.name == "voidbox-store" for t in threading.enumerate())
    with pytest.raises(ProviderError, match="closed"):
        await store.list_runs()
