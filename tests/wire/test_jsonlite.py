"""The strict JSON of frame payloads, against the standard library's."""

from __future__ import annotations

import json
import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.wire.frames import MAX_JSON, WireError
from voidbox_lab.wire.jsonlite import dumps, loads

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(text, values, max_size=5))
def test_round_trip_and_agreement(value: dict[str, object]) -> None:
    """We read what we write, and so does everybody else."""
    data = dumps(value)
    assert loads(data) == value
    assert json.loads(data) == value
    assert loads(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@given(st.binary(max_size=80))
def test_any_bytes_raise_nothing_but_a_wire_error(data: bytes) -> None:
    """Payloads come from a guest."""
    with suppress(WireError):
        assert isinstance(loads(data), dict)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"1", b"{} x", b'{"a":NaN}', b'{"a":Infinity}', b"\xff", b'{"a":"\\ud800"}', b'{"\\udfff":1}',
        b'{"a":[' * 30000, b"[" * 200000, b'{"a":' + b"9" * 5000 + b"}", b'{"a":"\x01"}',
        b'{"a":1e999}', b'{"a":[-1e400]}', b'{"a":9223372036854775808}', b'{"a":-9223372036854775809}',
    ],
)  # fmt: skip
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    """Depth, lone surrogates, huge and infinite numbers, control characters."""
    with pytest.raises(WireError):
        loads(data)


@pytest.mark.parametrize("value", [math.nan, math.inf, b"x", {1}])
def test_what_has_no_json_form_is_refused(value: object) -> None:
    """Rather than sending something that only we read."""
    with pytest.raises(WireError):
        dumps({"a": value})


def test_too_long_is_refused() -> None:
    """A payload fits its frame."""
    with pytest.raises(WireError, match="exceeds"):
        dumps({"a": "x" * MAX_JSON})
