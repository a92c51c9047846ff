"""What a stage leaves in /workspace/output: kept, handed on, bounded, and taken from the cache again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine.lab import Lab, box, chain, open_lab
from voidbox_lab.box.bundles import Packed
from voidbox_lab.engine import collect
from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.spec import RunSpec, Skill, Stage, digest_bytes
from voidbox_lab.spec.events import FileKept, Mounted, Notice
from voidbox_lab.store import prune

pytestmark = pytest.mark.anyio
OpenLab = Callable[..., AbstractAsyncContextManager[Lab]]


@pytest.fixture
def lab(tmp_path: Path) -> OpenLab:
    return partial(open_lab, tmp_path)


def file(path: str, *pieces: bytes) -> list[Packed]:
    """A file as it comes out of a box."""
    return [Packed("file", path, False, data, n == len(pieces) - 1) for n, data in enumerate(pieces)]


LEFT = [
    *file("a.txt", b"one ", b"two"),
    Packed("dir", "sub", True, b"", True),
    *file("sub/empty", b""),
    ("away", "link"),
]


async def test_files_are_kept_and_handed_on(lab: OpenLab) -> None:
    """As artifacts in record and events; the next stage finds them, and is told where but not what."""
    async with lab() as it:
        it.boxes.leaves["one"] = LEFT
        record = await it.run(chain("one", "two"))
        files = record.stages["one"].files
        assert set(files) == {"a.txt", "sub/empty"}
        assert await it.runner.artifacts.read(files["a.txt"].digest) == b"one two"
        first, second = it.boxes.boxes_
        assert second.files["/workspace/input/one/a.txt"] == b"one two"
        assert second.files["/workspace/input/one/sub/empty"] == b""
        prompt = it.boxes.execs[1][1][1]
        assert "/workspace/input/one/: what stage 'one' left, 2 files" in prompt
        assert "a.txt" not in prompt
        events = await it.events(record.id)
        kept = {e.body.path: e.body.file for e in events if isinstance(e.body, FileKept)}
        assert kept == files
        notices = [e.body.message for e in events if isinstance(e.body, Notice)]
        assert any("away (a symbolic link)" in message for message in notices)
        assert not first.files.keys() & second.files.keys() - {"/workspace/input/one.md"}


async def test_the_cache_brings_files_back(lab: OpenLab) -> None:
    """With the answer; and what is handed on is in the key: other files, other work."""
    async with lab() as it:
        it.boxes.leaves["one"] = LEFT
        first = await it.run(chain("one", "two"))
        again = await it.run(chain("one", "two"))
        assert it.boxes.opened == 2
        assert again.stages["one"].cached is not None
        assert again.stages["one"].files == first.stages["one"].files
        it.boxes.leaves["one"] = file("a.txt", b"other")
        await it.run(chain("one", "two", fresh=True))
        third = await it.run(chain("one", "two"))
        assert third.stages["two"].cached is not None
        assert it.boxes.opened == 4
        # A file that is gone cannot be brought back, so the stage runs.
        await it.runner.artifacts.remove(third.stages["one"].files["a.txt"].digest)
        assert (await it.run(chain("one", "two"))).state == "succeeded"
        assert it.boxes.opened == 5


async def test_files_of_kept_runs_stay(lab: OpenLab) -> None:
    """Pruning removes an artifact only when no run has it, deep in a record or not."""
    async with lab() as it:
        it.boxes.leaves["one"] = LEFT
        record = await it.run(chain("one"))
        stray = await it.runner.artifacts.put(b"stray")
        later = record.created_at + 10_000
        gone = await prune(it.runner.store, it.runner.artifacts, now=later)
        assert gone.artifacts == (stray.digest,)
        assert await it.runner.artifacts.has(record.stages["one"].files["a.txt"].digest)


@pytest.mark.parametrize(
    ("left", "limit"),
    [
        ([p for n in range(collect.MAX_FILES + 1) for p in file(f"f{n}", b"x")], "output-files"),
        ([p for n in range(200) for p in file(f"{n:03}" + "n" * 250 + "/" + "m" * 250, b"x")], "output-bytes"),
        ([LimitExceeded("more", limit="bytes", cause="too-large")], "output-bytes"),
        ([LimitExceeded("more", limit="files", cause="too-large")], "output-files"),
    ],
)
async def test_too_much_fails_and_says_which(lab: OpenLab, left: list[Any], limit: str) -> None:
    """A part of the files would pass for all of them."""
    async with lab() as it:
        it.boxes.leaves["one"] = left
        record = await it.run(chain("one"))
        assert record.trouble is not None
        assert (record.trouble.kind, record.trouble.limit) == ("limit", limit)
        assert "/workspace/output" in record.trouble.message
        assert record.stages["one"].files == {}


async def test_a_guest_that_never_ends_its_list_is_stopped(lab: OpenLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry now and then is progress; all of it together has a bound."""
    monkeypatch.setattr(collect, "COLLECT_S", 0.3)
    async with lab() as it:
        it.boxes.leaves["one"] = [each for n in range(200) for each in (0.1, *file(f"f{n}", b"x"))]
        record = await it.run(chain("one"))
        assert record.trouble is not None
        assert (record.trouble.kind, record.trouble.limit, record.trouble.value) == ("limit", "time", 0.3)
        assert "/workspace/output" in record.trouble.message
        assert record.stages["one"].files == {}


@pytest.mark.parametrize(("cause", "notices"), [("not-found", 0), ("not-a-directory", 1), ("bad-request", 1)])
async def test_a_directory_that_is_gone_is_empty(lab: OpenLab, cause: str, notices: int) -> None:
    """An agent may remove it, or put a link there: its answer counts all the same."""
    async with lab() as it:
        it.boxes.leaves["one"] = [UserError("pack", cause=cause)]
        record = await it.run(chain("one"))
        assert (record.state, record.stages["one"].files) == ("succeeded", {})
        events = await it.events(record.id)
        assert sum(isinstance(e.body, Notice) for e in events) == notices


async def test_a_failed_stage_leaves_nothing(lab: OpenLab) -> None:
    """What an agent wrote before it failed is nobody's input."""
    from tests.engine.doubles import FakeExit

    async with lab(one=[("exit", FakeExit(code=1))]) as it:
        it.boxes.leaves["one"] = LEFT
        record = await it.run(chain("one"))
        assert (record.state, record.stages["one"].files) == ("failed", {})


async def test_an_input_cannot_take_the_place_of_files(lab: OpenLab) -> None:
    """`one` is a directory where stage `one` left files."""
    async with lab() as it:
        given = await it.runner.artifacts.put(b"x")
        with pytest.raises(ValueError, match="name of an earlier answer"):
            Stage(box=box("two"), needs=("one",), inputs={"one": given})


async def test_skills_bring_their_files(lab: OpenLab) -> None:
    """Into the agent's directory of skills; a run whose files were not uploaded is refused."""
    skill = Skill(name="plot", description="", body="Plot.").with_files({"bin/plot.py": (b"print()", True)})
    spec = RunSpec(stages=(Stage(box=box("one", skills=(skill,))),))
    async with lab() as it:
        with pytest.raises(UserError, match=r"plot/bin/plot\.py"):
            await it.runner.submit(spec)
        assert (await it.runner.artifacts.put(b"print()")).digest == digest_bytes(b"print()")
        assert (await it.run(spec)).state == "succeeded"
        (only,) = it.boxes.boxes_
        assert only.files["/home/agent/.claude/skills/plot/bin/plot.py"] == b"print()"


async def test_bytes_are_read_as_they_come() -> None:
    """A file's pieces are an async iterator that ends with the file, not with the stream."""
    pieces = [*file("a", b"1", b"2"), *file("b", b"3")]

    async def stream() -> AsyncIterator[Packed]:
        for piece in pieces:
            yield piece

    entries = stream()
    first = await anext(entries)
    assert [data async for data in collect._data(first, entries)] == [b"1", b"2"]
    assert (await anext(entries)).path == "b"


async def test_folders_in_a_run(lab: OpenLab, tmp_path: Path) -> None:
    """Said when they are there; one that may only be read is in the cache's key by what is in it."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "x").write_text("1")
    (folder / "out").symlink_to("/etc")
    spec = RunSpec(stages=(Stage(box=box("one", mounts=(f"{folder}:/data",))),))
    async with lab() as it:
        record = await it.run(spec)
        assert it.boxes.boxes_[0].files["/data/x"] == b"1"
        events = [e.body for e in await it.events(record.id)]
        (mounted,) = [body for body in events if isinstance(body, Mounted)]
        assert (mounted.how, mounted.direction, mounted.files) == ("copy", "in", 1)
        assert any("out (a symbolic link)" in body.message for body in events if isinstance(body, Notice))
        assert (await it.run(spec)).stages["one"].cached is not None
        (folder / "x").write_text("2")
        assert (await it.run(spec)).stages["one"].cached is None
        (folder / "x").unlink()
        (folder / "out").unlink()
        folder.rmdir()
        gone = await it.run(spec)
        assert gone.trouble is not None
        assert (gone.trouble.kind, gone.trouble.cause) == ("user", "mount")


async def test_a_writable_folder_comes_back_on_success_alone(lab: OpenLab, tmp_path: Path) -> None:
    """And such a stage is never taken from the cache."""
    from tests.engine.doubles import FakeExit

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "x").write_text("1")
    mounts = (f"{folder}:/data:rw",)
    bad, good = (RunSpec(stages=(Stage(box=box(name, mounts=mounts)),)) for name in ("bad", "good"))
    async with lab(bad=[("exit", FakeExit(code=1))]) as it:
        it.boxes.leaves["bad"] = it.boxes.leaves["good"] = [*file("x", b"2")]
        assert (await it.run(bad)).state == "failed"
        assert (folder / "x").read_text() == "1"
        for n in ("2", "3"):
            it.boxes.leaves["good"] = [*file("x", n.encode())]
            record = await it.run(good)
            assert (record.state, record.stages["good"].cached) == ("succeeded", None)
            assert (folder / "x").read_text() == n
            events = [e.body for e in await it.events(record.id)]
            assert [b.direction for b in events if isinstance(b, Mounted)] == ["in", "out"]
