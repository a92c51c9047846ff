"""Tables that a guest wrote, as data frames. A small file may hold a large one: each is counted as it is read.

Not for the files themselves: `files`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from voidbox_lab.api.arrow_ipc import uncompressed_bytes
from voidbox_lab.errors import LimitExceeded

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MAX_BYTES = 1 << 30
"""Most bytes of a data frame: as Arrow holds it, or as pandas does if it was text."""
MAX_JSON_BYTES = 64 << 20
"""Most bytes of JSON, whose values cannot be counted before they are there: in memory they take some five times as
many, and forty times at the worst."""
MAX_COLUMNS = 10_000
"""Of a frame from text: pandas takes a kilobyte and much time for each."""
CELL = 64
"""Bytes that a value of a CSV file may take, to choose how many rows are read before they are counted."""
BATCH_ROWS = 1024
"""Rows of Parquet that are read before they are counted."""
_FIELD_END = re.compile(rb",|[\r\n]\s*")


def _parquet(data: bytes) -> pd.DataFrame:
    import pyarrow as pa
    from pyarrow import parquet

    file = parquet.ParquetFile(pa.BufferReader(data))
    return _counted(file.iter_batches(batch_size=BATCH_ROWS), file.schema_arrow)


def _arrow(data: bytes) -> pd.DataFrame:
    import pyarrow as pa

    # The file as the stream that is in it, and not by its footer: what is counted is what is read.
    stream = pa.py_buffer(data).slice(8 if data.startswith(b"ARROW1") else 0)
    if uncompressed_bytes(stream) > MAX_BYTES:
        raise _too_large()
    reader = pa.ipc.open_stream(stream)
    return _counted(reader, reader.schema)


def _counted(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pd.DataFrame:
    import pyarrow as pa

    kept, size = [], 0
    for batch in batches:
        # A column of nulls takes no bytes, however long it is.
        size += sum(max(column.nbytes, len(column)) for column in batch.columns)
        if size > MAX_BYTES:
            raise _too_large()
        batch.validate(full=True)  # pandas is led by its offsets, wherever they point
        kept.append(batch)
    return pa.Table.from_batches(kept, schema=schema).to_pandas()  # type: ignore[no-any-return]


def _csv(data: bytes) -> pd.DataFrame:
    import pandas as pd

    rows = max(1, MAX_BYTES // (CELL * _csv_columns(data)))
    size, first = 0, None
    with pd.read_csv(io.BytesIO(data), chunksize=rows) as chunks:
        for n, chunk in enumerate(chunks):
            size += int(chunk.memory_usage(deep=True).sum())
            if size > MAX_BYTES:
                raise _too_large()
            first = None if n else chunk
    # Not put together: the type of a column is to be that of all its values.
    return pd.read_csv(io.BytesIO(data)) if first is None else first


def _csv_columns(data: bytes) -> int:
    """Fields of the header, or of the row after it if there are more, which are pandas' index then."""
    data = data.lstrip()
    at, lines, most, fields = 0, 0, 1, 1
    while lines < 2 and at < len(data):
        if data.startswith(b'"', at):
            at = _closed(data, at)
        found = _FIELD_END.search(data, at)
        if found is None:
            break
        at = found.end()
        if found[0] == b",":
            fields += 1
            most = max(most, fields)
            _check_columns(most)
        else:
            lines, fields = lines + 1, 1
    return most


def _closed(data: bytes, at: int) -> int:
    """The end of the quoted field that begins at `at`; two quotes are one in it (RFC 4180)."""
    while (at := data.find(b'"', at + 1)) >= 0:
        if not data.startswith(b'"', at + 1):
            return at + 1
        at += 1
    return len(data)


def _records(data: bytes) -> pd.DataFrame:
    _check_text(data)
    return _of_json(json.loads(data))


def _lines(data: bytes) -> pd.DataFrame:
    _check_text(data)
    return _of_json([json.loads(line) for line in data.splitlines() if line.strip()])


def _check_text(data: bytes) -> None:
    if len(data) > MAX_JSON_BYTES:
        raise LimitExceeded(
            f"is more than {MAX_JSON_BYTES >> 20} MiB of JSON", limit="frame", value=MAX_JSON_BYTES, unit="bytes"
        )


def _of_json(table: Any) -> pd.DataFrame:
    """Rows as objects or arrays, or columns: a few values may want a column, or a row, of their own each."""
    import pandas as pd

    across = list(table.values()) if isinstance(table, dict) else table
    names = {name for each in across if isinstance(each, dict) for name in each}
    along = max([len(names), *(len(each) for each in across if isinstance(each, list))], default=1)
    _check_columns(len(across) if isinstance(table, dict) else along)
    if len(across) * along * 8 > MAX_BYTES:
        raise _too_large()
    return pd.DataFrame(table)


def _check_columns(count: int) -> None:
    if count > MAX_COLUMNS:
        raise LimitExceeded(
            f"has more than {MAX_COLUMNS:,} columns", limit="frame", value=MAX_COLUMNS, unit="columns"
        )


def _too_large() -> LimitExceeded:
    what = f"holds more than {MAX_BYTES >> 20} MiB of data"
    return LimitExceeded(what, limit="frame", value=MAX_BYTES, unit="bytes")


READERS: dict[str, Callable[[bytes], pd.DataFrame]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".csv": _csv,
    ".json": _records,
    ".jsonl": _lines,
}
"""What reads a file, by its extension. They raise `LimitExceeded`, whose message goes on after the file's name,
and whatever a parser makes of bytes that a guest wrote."""
