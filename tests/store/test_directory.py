"""The directory against the contract, and what is its own: torn writes, the index, the lock, modes, damage."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.conformance import ROOT, Place, StoreContract, end, run_spec, text
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.spec.events import StageChanged
from voidbox_lab.store import DirectoryStore, Entry, rebuild
from voidbox_lab.store.directory import CHECKPOINT_EVENTS
from voidbox_lab.store.eventlog import STRIDE

pytestmark = pytest.mark.anyio


class TestDirectory(StoreContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return "directory", tmp_path

    async def spoil(self, place: Place, run: str) -> None:
        (file,) = place[1].rglob(f"{run}/record.json")
        file.write_text(file.read_text().replace('"created_at":', '"created":'))


async def _filled(root: Path, events: int = 5) -> Path:
    """A closed store with a run ``r1``, and that run's directory."""
    store = await DirectoryStore.open(root)
    await store.create_run("r1", run_spec(), at=1)
    for i in range(events):
        await store.append("r1", [text(f"{i}")])
    await store.aclose()
    return root / "r1"


async def _texts(root: Path) -> list[str]:
    store = await DirectoryStore.open(root)
    events = await store.read_events("r1", limit=5000)
    assert await store.count_events("r1") == len(events)
    await store.aclose()
    return [e.body.text for e in events]  # type: ignore[union-attr]


async def test_what_lies_there_can_be_read_by_others(tmp_path: Path) -> None:
    place = await _filled(tmp_path)
    assert json.loads((place / "spec.json").read_text()) == run_spec().model_dump(mode="json")
    assert json.loads((place / "record.json").read_text())["record"]["state"] == "queued"
    header, *lines = map(json.loads, (place / "events.jsonl").read_text().splitlines())
    assert header == {"run": "r1", "created_at": 1, "order": 1}
    assert [(e["seq"], e["body"]["text"]) for e in lines] == [(i + 1, str(i)) for i in range(5)]


async def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    """Under any umask, and a directory that was open is closed."""
    before = os.umask(0)
    try:
        (tmp_path / "store").mkdir(mode=0o755)
        await _filled(tmp_path / "store")
        store = await DirectoryStore.open(tmp_path / "store")
        await store.remember("sha256:" + "a" * 64, "r1", "one")
        await store.aclose()
    finally:
        os.umask(before)
    for path in (tmp_path / "store", *(tmp_path / "store").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("cut", [1, 2, 40, 120, 200])
async def test_a_torn_batch_is_cut_as_a_whole(tmp_path: Path, cut: int) -> None:
    """However much of its last write is missing, an append is there or not there; numbering goes on."""
    place = await _filled(tmp_path)
    log = place / "events.jsonl"
    whole = log.stat().st_size
    store = await DirectoryStore.open(tmp_path)
    await store.append("r1", [text("a"), text("b"), text("c")])
    await store.aclose()
    os.truncate(log, log.stat().st_size - cut)
    assert await _texts(tmp_path) == list("01234")
    assert log.stat().st_size == whole
    store = await DirectoryStore.open(tmp_path)
    assert [e.seq for e in await store.append("r1", [text("next")])] == [6]
    await store.aclose()


@pytest.mark.parametrize(
    "tail", [b"\0" * 5000, b"{", b"\n", b'{"seq":6}\n', b"\xff\xfe\n", b"x" * 2_000_000], ids=repr
)
async def test_what_is_no_event_is_cut(tmp_path: Path, tail: bytes) -> None:
    log = await _filled(tmp_path) / "events.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + tail)
    assert await _texts(tmp_path) == list("01234")
    assert log.read_bytes() == whole


@pytest.mark.parametrize("how", ["missing", "torn", "ahead", "nonsense"])
async def test_the_record_is_only_a_cache(tmp_path: Path, how: str) -> None:
    """Whatever becomes of the file, the events say what the run is."""
    store = await DirectoryStore.open(tmp_path)
    await store.create_run("r1", run_spec(), at=1)
    await store.append("r1", [Entry(StageChanged(state="booting"), "one", 2)])
    await store.append("r1", [text("x"), end("failed", at=3)])
    expected = await store.get_run("r1")
    await store.aclose()
    file = tmp_path / "r1" / "record.json"
    saved = file.read_text()
    match how:
        case "missing":
            file.unlink()
        case "torn":
            file.write_text(saved[:50])
        case "ahead":
            file.write_text(saved.replace('"seq":3,"bytes":', '"seq":9,"bytes":9'))
        case "nonsense":
            file.write_text('{"seq":0,"bytes":0,"record":{"state":"queued","finished_at":null}}')
    store = await DirectoryStore.open(tmp_path)
    assert await store.get_run("r1") == expected
    assert expected == rebuild("r1", run_spec(), await store.read_events("r1"), at=1)
    assert await store.has_ended("r1")
    await store.aclose()


@pytest.mark.parametrize("how", ["missing", "short", "zero", "wrong", "huge"])
async def test_the_index_is_made_again(tmp_path: Path, how: str) -> None:
    store = await DirectoryStore.open(tmp_path)
    await store.create_run("r1", run_spec(), at=1)
    await store.append("r1", [text(str(i)) for i in range(4 * STRIDE)])
    index = tmp_path / "r1" / "events.index"
    good = index.read_bytes()
    assert len(good) == 8 * 4
    bad = {"short": good[:13], "zero": bytes(len(good)), "wrong": good[:8] * 4, "huge": b"\xff" * len(good)}
    if how == "missing":
        index.unlink()
    else:
        index.write_bytes(bad[how])
    after = 3 * STRIDE + 5
    assert [e.seq for e in await store.read_events("r1", after=after, limit=3)] == [
        after + 1,
        after + 2,
        after + 3,
    ]
    assert index.read_bytes() == good
    await store.aclose()


async def test_a_damaged_line_is_said_and_nothing_else_suffers(tmp_path: Path) -> None:
    log = await _filled(tmp_path) / "events.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"text":"2"', b'"text":2.2'))
    store = await DirectoryStore.open(tmp_path)
    assert len(await store.read_events("r1", limit=2)) == 2
    with pytest.raises(ProviderError, match="damaged") as caught:
        await store.read_events("r1")
    assert caught.value.cause == "store"
    assert len(await store.read_events("r1", after=3)) == 2
    await store.aclose()


async def test_a_full_disk_costs_only_what_was_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the batch was written already; none of it stays, and what comes after is numbered on."""
    store = await DirectoryStore.open(tmp_path)
    await store.create_run("r1", run_spec(), at=1)
    await store.append("r1", [text("a")])
    real, room = os.pwrite, [100]

    def full(file: int, data: bytes, offset: int) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(file, data[: room[0]], offset)
        room[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ProviderError, match="No space left") as caught:
        await store.append("r1", [text("b"), text("c")])
    assert caught.value.cause == "store"
    monkeypatch.undo()
    assert [e.seq for e in await store.append("r1", [text("d")])] == [2]
    await store.aclose()
    assert await _texts(tmp_path) == ["a", "d"]


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = await DirectoryStore.open(tmp_path)
    with pytest.raises(ProviderError, match=f"PID {os.getpid()}"):
        await DirectoryStore.open(tmp_path)
    script = (
        "import anyio, sys, pathlib\nfrom voidbox_lab.store import DirectoryStore\n"
        "anyio.run(DirectoryStore.open, pathlib.Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    other = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "is open in another process" in other.stderr
    await store.aclose()
    assert subprocess.run(command, env=environment, check=False).returncode == 0


async def test_what_is_no_run_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Strange directories, links and left-overs neither stop the store nor are listed; left-overs go."""
    await _filled(tmp_path)
    runs = tmp_path
    for name in ("empty", "bad name", ".new-1", ".gone-1"):
        (runs / name).mkdir()
    (runs / "link").symlink_to(runs / "r1")
    store = await DirectoryStore.open(tmp_path)
    assert [r.id for r in await store.list_runs()] == ["r1"]
    assert {p.name for p in runs.iterdir()} == {"r1", "empty", "bad name", "link", ".lock"}
    assert "left alone" in caplog.text
    with pytest.raises(UserError, match="already"):
        await store.create_run("empty", run_spec(), at=0)
    await store.aclose()


async def test_a_record_is_never_far_behind(tmp_path: Path) -> None:
    """So that little is folded again after a crash."""
    store = await DirectoryStore.open(tmp_path)
    await store.create_run("r1", run_spec(), at=1)
    for _ in range(25):
        await store.append("r1", [text("x")] * 100)
        saved = json.loads((tmp_path / "r1" / "record.json").read_text())["seq"]
        assert await store.count_events("r1") - saved < CHECKPOINT_EVENTS
    await store.aclose()


async def test_a_torn_line_of_the_stage_cache_costs_only_itself(tmp_path: Path) -> None:
    await _filled(tmp_path)
    one, two = ("sha256:" + c * 64 for c in "12")
    store = await DirectoryStore.open(tmp_path)
    await store.remember(one, "r1", "one")
    await store.remember(two, "r1", "one")
    await store.aclose()
    file = tmp_path / ".stages.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    for _ in range(2):
        store = await DirectoryStore.open(tmp_path)
        assert (await store.recall(one), await store.recall(two)) == (("r1", "one"), None)
        await store.aclose()
    assert len(file.read_text().splitlines()) == 1
