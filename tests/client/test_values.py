"""Values in and files out: what becomes of them, and what is refused. The boxes are doubles."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from anyio.to_thread import run_sync

from tests.daemon.conftest import house, settings  # noqa: F401 - fixtures
from voidbox_lab.api import VoidBox, absolute_mount, frames, named
from voidbox_lab.api.values import named_bytes
from voidbox_lab.box.bundles import Packed
from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.spec import Skill

MODEL = "scripted:quickstart"
FRAME = pd.DataFrame(
    {
        "day": pd.to_datetime(["2026-01-02", "2026-01-05"], utc=True),
        "close": [1.5, None],
        "name": ["ä", None],
        "n": [2**60, 1],
    }
)


@pytest.mark.parametrize("ending", ["", ".parquet", ".arrow", ".feather"])
def test_frames_keep_their_types(ending: str) -> None:
    """Times with their zone, large integers, what is missing; the index."""
    indexed = FRAME.set_index("day")
    for frame in (FRAME, indexed):
        name, data = named_bytes(f"prices{ending}", frame)
        assert name == f"prices{ending or '.parquet'}"
        read = frames.READERS[Path(name).suffix](data)
        pd.testing.assert_frame_equal(read, frame)


def test_frames_as_text() -> None:
    """A plain index is no column, any other is; records have ISO dates."""
    name, data = named_bytes("p.csv", FRAME[["close"]])
    assert (name, data) == ("p.csv", b'close\n1.5\n""\n')
    assert named_bytes("p.csv", FRAME[["close"]].set_index([["x", "y"]]))[1].startswith(b",close\nx,1.5\n")
    records = json.loads(named_bytes("p.json", FRAME)[1])
    assert records[0]["day"].startswith("2026-01-02T00:00:00")
    assert records[1] == {"day": records[1]["day"], "close": None, "name": None, "n": 1}


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        (pd.Series([1, 2], name="s"), ["s"]),
        (pd.Series([1, 2]), ["value"]),
        (pd.Index([1, 2], name="i"), ["i"]),
        (np.array([1, 2]), ["value"]),
        (np.ones((2, 3)), ["0", "1", "2"]),
        (pa.table({"a": [1, 2]}), ["a"]),
    ],
)
def test_what_is_a_frame_as_well(value: Any, columns: list[str]) -> None:
    """Whatever holds a table."""
    name, data = named_bytes("x", value)
    assert name == "x.parquet"
    read = pd.read_parquet(io.BytesIO(data))
    assert list(read.columns) == columns
    assert len(read) == 2


def test_plain_values_are_json() -> None:
    """And bytes are bytes, a text is a path."""
    assert named_bytes("cfg", {"a": [1, None, "ä"]}) == ("cfg.json", '{"a": [1, null, "ä"]}'.encode())
    assert named_bytes("cfg.json", [1]) == ("cfg.json", b"[1]")
    assert named_bytes("raw", bytearray(b"\0")) == ("raw", b"\0")
    assert named({"n": 3, "raw": b"x"}) == {"n.json": b"3", "raw": b"x"}
    with pytest.raises(UserError, match="no input file"):
        named({"f": "no/such/file"})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"x": object()}, "no JSON form"),
        ({"x": {"f": float("nan")}}, "no JSON form"),
        ({"x.csv": [1]}, "written as JSON"),
        ({"x.xlsx": FRAME}, r"\.parquet"),
        ({"x": np.ones((1, 1, 1))}, "3 dimensions"),
        ({"x": pd.DataFrame({"o": [1, "a", b"b"]})}, "cannot be written"),
        ({"x": FRAME, "x.parquet": b""}, "Two inputs"),
        (FRAME, "needs a name"),
        (3, "needs a name"),
    ],
)
def test_what_has_no_file(given: Any, says: str) -> None:
    """In one sentence, with what to do."""
    with pytest.raises(UserError, match=says):
        named(given)


@pytest.mark.anyio
async def test_there_and_back(house: Any, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    """Values become a stage's files; what it leaves is read by its kind, saved, and refused where it is none."""
    parquet = named_bytes("out", FRAME)[1]
    left = {
        "out.parquet": parquet, "t/a.txt": "ä".encode(), "cfg.json": b'{"a": 1}', "x.csv": b"a,b\n1,2\n",
        "bad.parquet": b"PAR1" + bytes(40) + b"PAR1", "bad.json": b"{" * 100_000, "rows.json": b'[{"a": 1}]',
    }  # fmt: skip
    house.backend.leaves["one"] = [Packed("file", p, False, d, True) for p, d in left.items()]
    skill = Skill(name="s", description="", body="B").with_files({"x.py": (b"1", False)})
    one = VoidBox("one", model=MODEL, prompt="p", skills=[skill])
    run = await one.arun({"prices": FRAME, "cfg": {"a": 1}}, settings=house.settings)
    assert run.state == "succeeded", run
    given = house.backend.boxes_[0].files
    assert given["/workspace/input/cfg.json"] == b'{"a": 1}'
    assert given["/home/agent/.claude/skills/s/x.py"] == b"1"
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(given["/workspace/input/prices.parquet"])), FRAME)

    def look() -> None:
        found = run.files("one")
        assert set(found) == set(left)
        assert set(run.files()) == {f"one/{path}" for path in left}
        pd.testing.assert_frame_equal(found["out.parquet"].frame(), FRAME)
        assert found["t/a.txt"].text() == "ä"
        assert found["cfg.json"].json() == {"a": 1}
        assert found["x.csv"].frame().to_dict("records") == [{"a": 1, "b": 2}]
        assert found["rows.json"].frame().to_dict("records") == [{"a": 1}]
        assert found["t/a.txt"].save(tmp_path) == tmp_path / "a.txt"
        assert (tmp_path / "a.txt").read_text() == "ä"
        assert found["cfg.json"].save(tmp_path / "mine").read_bytes() == b'{"a": 1}'
        assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["a.txt", "mine"]
        for wrong, read in (
            (found["bad.parquet"], "frame"), (found["bad.json"], "json"), (found["bad.json"], "frame"),
            (found["out.parquet"], "text"), (found["t/a.txt"], "frame"),
        ):  # fmt: skip
            with pytest.raises(UserError, match="bytes"):
                getattr(wrong, read)()
        with pytest.raises(UserError, match="cannot be written"):
            found["t/a.txt"].save(tmp_path / "no" / "dir")
        with pytest.raises(UserError, match="no stage"):
            run.files("two")

    await run_sync(look)


def test_a_small_file_may_hold_a_large_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest's Parquet of some kilobytes is read no further than its bound."""
    data = named_bytes("x", pd.DataFrame({"x": ["y" * 1000] * 200_000}))[1]
    assert len(data) < 100_000
    monkeypatch.setattr(frames, "MAX_BYTES", 10 << 20)
    with pytest.raises(LimitExceeded):
        frames.READERS[".parquet"](data)


def test_mounts_are_this_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder by a relative path is the caller's, not the daemon's."""
    monkeypatch.chdir(tmp_path)
    one = VoidBox("one", model=MODEL, prompt="p", mounts=["data:/data", "~/out:/out:rw"])
    assert [str(m) for m in one.spec.mounts] == [f"{tmp_path}/data:/data:ro", f"{Path.home()}/out:/out:rw"]
    assert absolute_mount("nothing") == "nothing"
    with pytest.raises(UserError, match="FOLDER:PATH"):
        VoidBox("one", model=MODEL, prompt="p", mounts="nothing")
