"""Python values as files: a data frame becomes Parquet, a dictionary JSON, unless an extension says otherwise.

Not for reading them again: `files`. pandas and pyarrow are imported when a frame comes along, and not before.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from voidbox_lab.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

FRAMES = (".parquet", ".arrow", ".feather", ".csv", ".json")
"""What a data frame can be written as; the first, where the name says nothing."""


def named_bytes(name: str, value: Any) -> tuple[str, bytes]:
    """The name and the bytes of the file for `value`.

    Bytes keep their name. A frame is what has ``__arrow_c_stream__`` (pandas, polars, pyarrow and others: the
    Arrow PyCapsule interface), a pandas Series or Index, or a numpy array of one or two dimensions; without an
    extension its file is called ``NAME.parquet``. Everything else has to have a JSON form: ``NAME.json``.

    Raises:
        UserError: no such form, or an extension that is not for such a value.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return name, bytes(value)
    suffix = PurePosixPath(name).suffix.lower()
    frame = _frame(value)
    if frame is None:
        if suffix not in {"", ".json"}:
            raise UserError(
                f"The input {name!r} is a {type(value).__name__}, which is written as JSON; call it "
                f"{PurePosixPath(name).stem}.json, or pass bytes or a data frame."
            )
        return name if suffix else f"{name}.json", _json(name, value)
    if suffix not in {"", *FRAMES}:
        raise UserError(
            f"The input {name!r} is a data frame, which is written as {', '.join(FRAMES)}; use one of these "
            "endings."
        )
    write = _WRITERS[suffix or FRAMES[0]]
    try:
        return name if suffix else f"{name}{FRAMES[0]}", write(frame)
    except (ValueError, TypeError, NotImplementedError) as e:  # pyarrow's errors are some of these
        text = " ".join(str(e).split())[:300]
        raise UserError(
            f"The data frame {name!r} cannot be written as {suffix or FRAMES[0]} ({text}); convert its "
            "columns first."
        ) from e


def _json(name: str, value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as e:
        raise UserError(
            f"The input {name!r} has no JSON form ({e}); pass a path, bytes, a data frame, or plain values."
        ) from e


def _frame(value: Any) -> pd.DataFrame | None:
    """`value` as a frame of pandas; None if it is none."""
    if value is None or isinstance(value, str | int | float | bool | list | tuple | Mapping):
        return None
    module = type(value).__module__.partition(".")[0]
    if module == "numpy" and hasattr(value, "ndim"):
        return _of_array(value)
    if module == "pandas" and hasattr(value, "to_frame"):  # a Series or an Index
        return value.to_frame(name=value.name if value.name is not None else "value")  # type: ignore[no-any-return]
    if module == "pandas" and hasattr(value, "columns"):
        return value  # type: ignore[no-any-return]
    if hasattr(value, "__arrow_c_stream__"):
        import pyarrow as pa

        try:
            return pa.table(value).to_pandas()  # type: ignore[no-any-return]
        except pa.ArrowException as e:
            raise UserError(f"A {type(value).__name__} cannot be read as a table ({e}).") from e
    return None


def _of_array(array: Any) -> pd.DataFrame:
    import pandas as pd

    if array.ndim not in {1, 2}:
        raise UserError(f"An array of {array.ndim} dimensions is no table; pass one of 1 or 2, or bytes.")
    columns = ["value"] if array.ndim == 1 else [str(n) for n in range(array.shape[1])]
    return pd.DataFrame(array, columns=columns)


def _parquet(frame: pd.DataFrame) -> bytes:
    data = io.BytesIO()
    frame.to_parquet(data, engine="pyarrow")
    return data.getvalue()


def _arrow(frame: pd.DataFrame) -> bytes:
    import pyarrow as pa

    table = pa.Table.from_pandas(frame)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _csv(frame: pd.DataFrame) -> bytes:
    import pandas as pd

    plain = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    return str(frame.to_csv(index=not plain)).encode()


def _records(frame: pd.DataFrame) -> bytes:
    # pandas' own: it knows dates, numpy's numbers and missing values.
    return str(frame.to_json(orient="records", date_format="iso", force_ascii=False)).encode()


_WRITERS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,  # version 2 of that format is Arrow's own
    ".csv": _csv,
    ".json": _records,
}
assert tuple(_WRITERS) == FRAMES
