"""Files that stages left, read back: by their extension, bounded, with the guest's nonsense told as such."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from voidbox_lab.api import files
from voidbox_lab.api.files import OutputFile
from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.spec import InputFile, digest_bytes

FRAME = pd.DataFrame({"id": [1, 2], "title": ["a", "b"]})


class Shelf:
    """A client that has one file."""

    data = b""

    def __init__(self, _settings: object) -> None:
        pass

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def download(self, digest: str) -> bytes:
        assert digest == digest_bytes(self.data)
        return self.data

    def fetch(self, digest: str, to: Path) -> None:
        to.write_bytes(self.download(digest))


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an `OutputFile` of a path and its bytes."""

    def make(path: str, data: bytes) -> OutputFile:
        monkeypatch.setattr(Shelf, "data", data)
        monkeypatch.setattr(files, "Client", Shelf)
        return OutputFile("one", path, InputFile(digest=digest_bytes(data), size=len(data)))

    return make


def _encoded(suffix: str) -> bytes:
    out = io.BytesIO()
    match suffix:
        case ".parquet":
            FRAME.to_parquet(out)
        case ".feather" | ".arrow":
            FRAME.to_feather(out)
        case ".csv":
            FRAME.to_csv(out, index=False)
        case ".json":
            FRAME.to_json(out, orient="records")
        case _:
            FRAME.to_json(out, orient="records", lines=True)
    return out.getvalue()


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".arrow", ".csv", ".json", ".jsonl"])
def test_tables(left: Any, suffix: str) -> None:
    """The extension says how; rubbish is the guest's fault and told as such."""
    pd.testing.assert_frame_equal(left(f"t{suffix}", _encoded(suffix)).frame(), FRAME, check_dtype=False)
    with pytest.raises(UserError, match="is not a"):
        left(f"t{suffix}", b'\x00\xff"' * 9).frame()


def test_other_forms(left: Any, tmp_path: Path) -> None:
    """Text, JSON, bytes, a copy."""
    file = left("d/x.json", b'{"a": [1]}')
    assert (file.json(), file.text(), file.bytes()) == ({"a": [1]}, '{"a": [1]}', b'{"a": [1]}')
    assert file.save(tmp_path) == tmp_path / "x.json"
    assert (tmp_path / "x.json").read_bytes() == b'{"a": [1]}'
    for deep in (b"{", b"[" * 100_000):
        with pytest.raises(UserError, match="is not JSON"):
            left("x.json", deep).json()
    with pytest.raises(UserError, match=r"is not utf-8 text"):
        left("x.txt", b"\xff").text()
    with pytest.raises(UserError, match="no table by its name"):
        left("x.txt", b"a").frame()


def test_a_small_file_may_hold_a_large_table(left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet of one value, a million times, is a few kilobytes: what it becomes is counted."""
    monkeypatch.setattr(files, "MAX_FRAME_BYTES", 1 << 20)
    out = io.BytesIO()
    pa.parquet.write_table(pa.table({"x": ["same text again and again"] * 200_000}), out)
    assert len(out.getvalue()) < 50_000
    with pytest.raises(LimitExceeded, match="holds more than 1 MiB"):
        left("x.parquet", out.getvalue()).frame()
