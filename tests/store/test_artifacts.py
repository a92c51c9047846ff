"""Content-addressed files: same bytes once, bounded, verified when read, nothing left by a failure."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.spec import digest_bytes
from voidbox_lab.store import Artifacts

pytestmark = pytest.mark.anyio


async def test_there_and_back(tmp_path: Path) -> None:
    artifacts = await Artifacts.open(tmp_path)
    kept = await artifacts.put(b"hello")
    assert (kept.digest, kept.size) == (digest_bytes(b"hello"), 5)
    assert await artifacts.read(kept.digest) == b"hello"
    assert await artifacts.has(kept.digest)
    assert await artifacts.put(b"hello") == kept
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1


async def test_nobody_else_can_read_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        await (await Artifacts.open(tmp_path / "artifacts")).put(b"hello")
    finally:
        os.umask(before)
    made = list((tmp_path / "artifacts").rglob("*"))
    assert [oct(p.stat().st_mode & 0o077) for p in (tmp_path / "artifacts", *made)] == ["0o0"] * (1 + len(made))
    assert {oct(p.stat().st_mode & 0o777) for p in made if p.is_file()} == {"0o400"}


async def test_a_damaged_file_is_never_handed_out(tmp_path: Path) -> None:
    artifacts = await Artifacts.open(tmp_path)
    kept = await artifacts.put(b"hello")
    path = await artifacts.verified(kept.digest)
    path.chmod(0o600)
    path.write_bytes(b"hullo")
    with pytest.raises(ProviderError, match="damaged") as caught:
        await artifacts.read(kept.digest)
    assert caught.value.cause == "artifact-corrupt"
    await artifacts.put(b"hello")
    assert await artifacts.read(kept.digest) == b"hello"


async def test_too_large_and_broken_uploads_leave_nothing(tmp_path: Path) -> None:
    artifacts = await Artifacts.open(tmp_path, max_bytes=10)

    async def breaks() -> AsyncIterator[bytes]:
        yield b"abc"
        raise RuntimeError("the client went away")

    with pytest.raises(LimitExceeded, match="10 bytes"):
        await artifacts.put(b"x" * 11)
    with pytest.raises(RuntimeError):
        await artifacts.put(breaks())
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


async def test_left_overs_of_a_crash_go_at_the_next_start(tmp_path: Path) -> None:
    await Artifacts.open(tmp_path)
    (tmp_path / "tmp" / "half").write_bytes(b"half")
    await Artifacts.open(tmp_path)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "../../etc/passwd", "sha256:" + "g" * 64, "sha256:../" + "a" * 61]
)
async def test_what_is_no_digest_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(UserError, match="not an artifact digest"):
        await (await Artifacts.open(tmp_path)).verified(digest)


async def test_an_artifact_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="upload it first"):
        await (await Artifacts.open(tmp_path)).read(digest_bytes(b"never seen"))


async def test_listing_and_removing(tmp_path: Path) -> None:
    """What is asked for counts as new; what is new is spared where that is asked for."""
    artifacts = await Artifacts.open(tmp_path)
    assert await artifacts.list() == []
    files = sorted([await artifacts.put(b"one"), await artifacts.put(b"three")], key=lambda f: f.digest)
    (tmp_path / "sha256" / "no-artifact").mkdir()
    (tmp_path / "sha256" / "aa").mkdir(exist_ok=True)
    (tmp_path / "sha256" / "aa" / "nor-this").touch()
    assert [(a.digest, a.size) for a in await artifacts.list()] == [(f.digest, f.size) for f in files]
    first, second = (f.digest for f in files)
    for digest in (first, second):
        os.utime(await artifacts.verified(digest), (100, 100))
    assert await artifacts.has(second)
    assert [a.modified == 100 for a in await artifacts.list()] == [True, False]
    assert not await artifacts.remove(second, before=200)
    assert not await artifacts.remove(first, before=100)
    assert await artifacts.remove(first, before=200)
    assert not await artifacts.remove(first)
    assert not await artifacts.has(first)
    assert await artifacts.remove(second)
    with pytest.raises(UserError, match="not an artifact digest"):
        await artifacts.remove("../../etc/passwd")
