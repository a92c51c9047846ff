"""JSON by the interpreter's own scanner and encoder, as :mod:`json` reads and writes it by default.

`json` itself loads `re` and `enum`, which under an emulated CPU takes as long as all of the agent.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """What the scanner reads its options from; the attributes of `json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    """NaN, Infinity and -Infinity."""


def _unknown(value: object) -> None:
    raise TypeError(f"{type(value).__name__} has no JSON form")


try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    _scan = make_scanner(_Context())
    # markers, default, encoder, indent, key separator, item separator, sort_keys, skipkeys, allow_nan
    _encode = make_encoder(None, _unknown, encode_basestring_ascii, None, ":", ",", False, False, True)
except (ImportError, TypeError):  # pragma: no cover - interpreters other than CPython
    from json import JSONDecoder, JSONEncoder

    _scan = JSONDecoder().scan_once

    def _encode(value: Any, _: int) -> list[str]:
        return [JSONEncoder(separators=(",", ":")).encode(value)]


def loads(data: bytes | str) -> Any:
    """The value in `data`. Raises ValueError (UnicodeDecodeError among it) or RecursionError."""
    text = data.decode("utf-8", "surrogatepass") if isinstance(data, bytes) else data
    text = text.strip(" \t\r\n")
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    if end != len(text):
        raise ValueError("text after the end of the JSON")
    return value


def dumps(value: Any) -> bytes:
    """`value` in compact form. ASCII escapes also carry lone surrogates, which UTF-8 could not."""
    return "".join(_encode(value, 0)).encode("ascii")
