"""The content-addressed cache: whole or not there, built once, damage seen."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.images.store import Blob, Store, digest_sparse
from voidbox_lab.spec.digest import digest_bytes


def writer(data: bytes):
    """A step that writes `data` and counts its calls."""

    def make(target: Path) -> None:
        make.calls += 1
        target.write_bytes(data)

    make.calls = 0
    return make


def test_a_step_is_taken_once(tmp_path: Path) -> None:
    """Same inputs: the stored file. Other inputs: another step. File gone: made again."""
    store, make = Store(tmp_path), writer(b"hello")
    blob = store.step({"a": 1}, "layers", make)
    assert blob == Blob("layers", digest_bytes(b"hello"), 5) == store.step({"a": 1}, "layers", make)
    assert make.calls == 1
    store.step({"a": 2}, "layers", make)
    store.path(blob).unlink()
    store.step({"a": 1}, "layers", make)
    assert make.calls == 3
    assert store.path(blob).read_bytes() == b"hello"


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"kind":"layers","digest":"sha256:../../x","size":5}'])
def test_a_damaged_record_is_made_again(tmp_path: Path, record: bytes) -> None:
    """It never becomes a path and never an exception of its own."""
    store, make = Store(tmp_path), writer(b"x")
    store.step(1, "layers", make)
    next((tmp_path / "steps").iterdir()).write_bytes(record)
    store.step(1, "layers", make)
    assert make.calls == 2


def test_a_failed_step_leaves_nothing(tmp_path: Path) -> None:
    """No half-made file, no record, no workspace."""

    def fail(target: Path) -> None:
        target.write_bytes(b"half")
        raise ProviderError("no")

    with pytest.raises(ProviderError):
        Store(tmp_path).step(1, "layers", fail)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert not list(tmp_path.glob("building-*"))


def test_damage_is_seen(tmp_path: Path) -> None:
    """Cut short: by size, at once. Changed in place: by verify."""
    store = Store(tmp_path)
    blob = store.step(1, "layers", writer(b"0123456789"))
    path = store.path(blob)
    assert store.whole(blob)
    assert store.verify(blob)
    path.chmod(0o644)
    path.write_bytes(b"0123456780")
    assert store.whole(blob)
    assert not store.verify(blob)
    path.write_bytes(b"0123")
    assert not store.whole(blob)


def test_sparse_digest_sees_content_not_holes(tmp_path: Path) -> None:
    """Holes, written zeroes and another order of writing give one digest; a moved byte gives another."""

    def image(name: str, *, zeroes: bool = False, at: int = 3 << 20, size: int = 8 << 20) -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            if zeroes:
                file.write(bytes(size))
            file.truncate(size)
            file.seek(at)
            file.write(b"data" * 3000)
        return path

    reference = digest_sparse(image("a"))
    assert digest_sparse(image("b", zeroes=True)) == reference
    assert digest_sparse(image("c", at=(3 << 20) + 4096)) != reference
    assert digest_sparse(image("d", size=(8 << 20) + 4096)) != reference


def _hold(cache: str, ready, seconds: float) -> None:
    with Store(Path(cache)).lock():
        ready.set()
        time.sleep(seconds)


def test_one_builder_at_a_time(tmp_path: Path) -> None:
    """Across processes; the wait has a bound, and a builder that dies frees the lock."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(os.fspath(tmp_path), ready, 60))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(LimitExceeded, match=r"0\.2 s"), Store(tmp_path).lock(timeout_s=0.2):
            pass
    finally:
        process.kill()
        process.join(10)
    with Store(tmp_path).lock(timeout_s=5):
        pass
