"""Files that stages left, read back: by their extension, bounded, with the guest's nonsense told as such."""

from __future__ import annotations

import io
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.api import files, frames
from voidbox_lab.api.arrow_ipc import uncompressed_bytes
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


def _arrow(table: pa.Table, compression: str | None) -> bytes:
    out = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(out, table.schema, options=options) as writer:
        writer.write_table(table)
    return out.getvalue()


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pa.parquet.write_table(table, out)
    return out.getvalue()


def _json(rows: Any) -> bytes:
    return json.dumps(rows).encode()


SMALL = {
    "text.parquet": _parquet(pa.table({"x": ["same text again and again"] * 200_000})),
    "zeros.arrow": _arrow(pa.table({"x": pa.repeat(0, 10_000_000)}), "zstd"),
    "zeros.feather": _arrow(pa.table({"x": pa.repeat(0, 1_000_000)}), "lz4"),
    "words.arrow": _arrow(pa.table({"x": pa.array(["a" * 2_000_000]).dictionary_encode()}), "zstd"),
    "nulls.arrow": _arrow(pa.table({"x": pa.nulls(50_000_000)}), None),
    "sparse.csv": b",".join(b"%d" % n for n in range(1000)) + b"\n" + b"1\n" * 10_000,
    "sparse.json": _json([{str(n): n} for n in range(1000)]),
    "sparse.jsonl": b"".join(b'{"%d": 1}\n' % n for n in range(1000)),
    "ragged.json": _json([[0] * 9999, *([[]] * 100)]),
    "columns.json": _json({"x": [0] * 9999} | {str(n): n for n in range(100)}),
}
"""Files that become more than a megabyte."""
POOLS = list[pa.MemoryPool]()
"""They must outlive what was allocated of them."""


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file_may_hold_a_large_table(left: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of one value, a million times, say: what it becomes is counted, and no more of it is held than that."""
    monkeypatch.setattr(frames, "MAX_BYTES", 1 << 20)
    assert len(SMALL[name]) < 50_000
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(LimitExceeded, match=r"holds more than 1 MiB of data; save\(\) it") as caught:
            left(name, SMALL[name]).frame()
    finally:
        pa.set_memory_pool(before)
    assert (caught.value.limit, caught.value.value) == ("frame", 1 << 20)
    assert (pool.max_memory() or 0) < 2 << 20


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("wide.csv", b"a," * 10_001),
        ("wide.csv", b' \n"a\n""b"\r\n\n' + b"1," * 10_001),
        ("wide.json", _json([dict.fromkeys(map(str, range(10_001)))])),
        ("wide.json", _json({str(n): [n] for n in range(10_001)})),
        ("wide.jsonl", _json([0] * 10_001)),
    ],
)
def test_a_table_has_so_many_columns(left: Any, name: str, data: bytes) -> None:
    """Where each takes a kilobyte, and pandas long, before anything is in it."""
    with pytest.raises(LimitExceeded, match="has more than 10,000 columns; save") as caught:
        left(name, data).frame()
    assert (caught.value.limit, caught.value.unit) == ("frame", "columns")


@pytest.mark.parametrize("name", ["large.json", "large.jsonl"])
def test_json_is_bounded_by_its_text(left: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nobody can tell what becomes of it before it is there."""
    monkeypatch.setattr(frames, "MAX_JSON_BYTES", 1 << 20)
    assert len(left(name, b'[{"a": 1}]' + b" " * 1000).frame()) == 1
    with pytest.raises(LimitExceeded, match="is more than 1 MiB of JSON"):
        left(name, b'[{"a": 1}]' + b" " * (1 << 20)).frame()


def test_a_csv_file_in_pieces_is_the_same_table(left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows are read at once, with quotes, empty lines and values that are missing."""
    monkeypatch.setattr(frames, "CELL", 1 << 28)
    table = pd.DataFrame({"n": range(9), "x": [0.5, None, 2] * 3, "t": ['a,"b"\nc', None, "d"] * 3})
    pd.testing.assert_frame_equal(left("t.csv", b"\n" + table.to_csv(index=False).encode()).frame(), table)


def test_offsets_that_lead_out_of_an_arrow_file_are_no_table(left: Any) -> None:
    """They would be read by pandas, in the caller's process."""
    before, offset, after = _arrow(pa.table({"x": ["a" * 0x1234]}), None).rpartition(b"\0\0\0\0\x34\x12\0\0")
    assert left("t.arrow", before + offset + after).frame()["x"][0] == "a" * 0x1234
    with pytest.raises(UserError, match="is not a"):
        left("t.arrow", before + b"\0\0\0\0\x34\x22\0\0" + after).frame()


@given(st.data())
def test_what_is_done_to_an_arrow_file_is_an_error_or_a_table(data: st.DataObject) -> None:
    """The lengths of its buffers are looked for in what a guest wrote."""
    changed = bytearray(SMALL["zeros.feather"])
    for at in data.draw(st.lists(st.integers(8, len(changed) - 1), max_size=4)):
        changed[at] = data.draw(st.integers(0, 255))
    with suppress(pa.ArrowException, struct.error, OSError, MemoryError, IndexError, ValueError):
        uncompressed_bytes(pa.py_buffer(bytes(changed)).slice(8))
