"""JSON for frame payloads: small, strict, and without importing :mod:`json`.

`json` pulls in `re`, `enum` and `functools`: more than a tenth of a second of boot in an emulated guest. Its C
scanner alone has no such needs. Strict means: no NaN or Infinity, however written, no integer beyond 64 bits, no
lone surrogates, objects at the top only.
"""

from __future__ import annotations

from .frames import MAX_JSON, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError("a number too large for a float")
    return value


def _int64(text: str) -> int:
    value = int(text)
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a number of more than 64 bits")
    return value


class _Context:
    """What the C scanner reads its options from; the same attributes as `json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = staticmethod(_finite)
    parse_int = staticmethod(_int64)
    parse_constant = staticmethod(_refuse)


try:
    from _json import encode_basestring_ascii as _quote
    from _json import make_scanner

    _scan: Any = make_scanner(_Context())  # type: ignore[arg-type]  # typeshed knows only JSONDecoder here
except (ImportError, AttributeError, TypeError):  # pragma: no cover - interpreters other than CPython
    from json import JSONDecoder
    from json.encoder import encode_basestring_ascii as _quote

    _scan = JSONDecoder(parse_float=_finite, parse_int=_int64, parse_constant=_refuse).scan_once  # type: ignore[attr-defined]


def loads(payload: bytes) -> dict[str, Any]:
    """The object in `payload`.

    Raises:
        WireError: not UTF-8, not JSON as above, not an object, or nested too deeply.
    """
    try:
        text = payload.decode("utf-8").strip(" \t\r\n")
        value, end = _scan(text, 0)
        if end != len(text):
            raise ValueError("text after the end")
        if "\\u" in text:
            _check_text(value)
    except (ValueError, StopIteration, RecursionError) as error:
        raise WireError("bad-json", f"a payload is not JSON: {type(error).__name__}") from None
    if type(value) is not dict:
        raise WireError("bad-json", "a payload is not a JSON object")
    return value


def _check_text(value: Any) -> None:
    """Escapes can smuggle in lone surrogates, which blow up later, wherever the text is first encoded."""
    if type(value) is str:
        value.encode("utf-8")
    elif type(value) is dict:
        for key, item in value.items():
            key.encode("utf-8")
            _check_text(item)
    elif type(value) is list:
        for item in value:
            _check_text(item)


def dumps(value: dict[str, Any]) -> bytes:
    """`value` as compact ASCII JSON.

    Raises:
        WireError: longer than `MAX_JSON`, or something in it has no JSON form.
    """
    parts: list[str] = []
    _write(value, parts)
    data = "".join(parts).encode("ascii")
    if len(data) > MAX_JSON:
        raise WireError("too-long", f"a payload of {len(data)} bytes exceeds {MAX_JSON}")
    return data


def _write(value: Any, out: list[str]) -> None:
    kind = type(value)
    if kind is str:
        out.append(_quote(value))
    elif value is None:
        out.append("null")
    elif kind is bool:
        out.append("true" if value else "false")
    elif kind is int:
        out.append(int.__repr__(value))
    elif kind is float:
        if value - value != 0:  # NaN and both infinities
            raise WireError("bad-json", "a number is not finite")
        out.append(float.__repr__(value))
    elif kind is dict:
        out.append("{")
        for index, (key, item) in enumerate(value.items()):
            out.append(("," if index else "") + _quote(key) + ":")
            _write(item, out)
        out.append("}")
    elif kind is list or kind is tuple:
        out.append("[")
        for index, item in enumerate(value):
            if index:
                out.append(",")
            _write(item, out)
        out.append("]")
    else:
        raise WireError("bad-json", f"{kind.__name__} has no JSON form")
