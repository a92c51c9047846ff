"""SQLite against the contract, and what is its own: durability, schema, bounds, damage."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest

from tests.store.conformance import Place, StoreContract, end, run_spec, text
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.spec import RunRecord
from voidbox_lab.store import SqliteStore
from voidbox_lab.store.schema import MIGRATIONS, migrate


class TestSqlite(StoreContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return "sqlite", tmp_path

    async def spoil(self, place: Place, run: str) -> None:
        (file,) = place[1].rglob("*.sqlite")
        sql = """UPDATE runs SET record = replace(record, '"created_at":', '"created":') WHERE id = ?"""
        with sqlite3.connect(file) as connection:
            connection.execute(sql, (run,))
        connection.close()


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


@pytest.mark.anyio
async def test_a_store_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    """Its runs are listed by state, and can be deleted."""
    path = tmp_path / "runs.sqlite"
    store = await SqliteStore.open(path)
    for run in ("r1", "r2"):
        await store.create_run(run, run_spec(), at=0)
    await store.append("r1", [end("failed")])
    records = await store.list_runs()
    await store.aclose()
    with sqlite3.connect(path) as old:
        stages = "SELECT json_group_object(name, json(record)) FROM run_stages WHERE run = id"
        old.execute(f"UPDATE runs SET record = json_set(record, '$.stages', json(({stages})))")
        for sql in ("INDEX runs_by_state", "TABLE stage_cache", "TABLE doomed", "TABLE run_stages"):
            old.execute(f"DROP {sql}")
        old.execute("ALTER TABLE runs DROP COLUMN state")
        old.execute("PRAGMA user_version = 1")
    store = await SqliteStore.open(path)
    assert [await store.get_run(record.id) for record in records] == records
    assert [r.id for r in await store.list_runs(state="failed")] == ["r1"]
    assert [r.id for r in await store.list_runs(state="queued")] == ["r2"]
    await store.delete_run("r1")
    assert [r.id for r in await store.list_runs()] == ["r2"]
    await store.aclose()


@pytest.mark.anyio
async def test_a_deletion_cut_short_is_finished_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    store = await SqliteStore.open(path)
    await store.create_run("r1", run_spec(), at=0)
    await store.append("r1", [text("x")] * 50)
    await store.aclose()
    with sqlite3.connect(path) as half:
        half.execute("DELETE FROM runs")
        half.execute("INSERT INTO doomed VALUES ('r1')")
    store = await SqliteStore.open(path)
    with sqlite3.connect(path) as look:
        left = look.execute("SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM doomed)").fetchone()
    assert left == (0, 0)
    await store.aclose()


@pytest.mark.anyio
async def test_the_file_shrinks_when_runs_go(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    store = await SqliteStore.open(path)
    await store.create_run("r1", run_spec(), at=0)
    for _ in range(5):
        await store.append("r1", [text("x" * 1000)] * 5000)
    await store.delete_run("r1", force=True)
    await store.aclose()
    assert path.stat().st_size < 1_000_000


@pytest.mark.anyio
async def test_an_event_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "runs.sqlite")
    await store.create_run("r1", run_spec(), at=0)
    await store.append("r1", [text("a")])
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE events SET body = '{}'")
    connection.close()
    with pytest.raises(ProviderError, match="r1") as caught:
        await store.read_events("r1")
    assert caught.value.cause == "store"
    await store.aclose()


@pytest.mark.anyio
async def test_a_refused_job_makes_nobody_else_load_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await SqliteStore.open(tmp_path / "runs.sqlite", max_events=2)
    for run in ("full", "other"):
        await store.create_run(run, run_spec(), at=0)
        await store.append(run, [text("a")])
    with pytest.raises(LimitExceeded):
        await store.append("full", [text("b")] * 2)
    loaded: list[str] = []
    load = store._load

    def counted(connection: sqlite3.Connection, run: str) -> tuple[RunRecord, int]:
        loaded.append(run)
        return load(connection, run)

    monkeypatch.setattr(store, "_load", counted)
    for run in ("full", "other"):
        assert (await store.append(run, [text("b")]))[0].seq == 2
    assert loaded == ["full"]
    await store.aclose()
