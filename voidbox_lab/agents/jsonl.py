"""Lines of JSON that came out of a box: bounded before they are read, and made fit for events after.

Shared by the parsers of agents that print one event a line.
"""

from __future__ import annotations

import json
from typing import Any

from voidbox_lab.spec.events import MAX_TEXT, AgentLog

MAX_LINE = 8 << 20
"""Longest line that is parsed, in bytes."""
MAX_MARKS = 250_000
"""Most braces, brackets and commas in a line: each costs up to 100 bytes and a microsecond to read."""
MAX_DEPTH = 32
"""Deepest tool input that is kept. Events are read back by parsers that stop at 200 levels."""
MAX_OUTPUT = 400_000
"""Longest final answer, in characters; and in bytes of JSON, with `_ESCAPES` more: it must fit one event."""
_ESCAPES = 80_000
MAX_NAME = 256

Json = dict[str, Any]


def read(line: bytes) -> Json | list[AgentLog]:
    """The object in `line`; or what is to be shown of a line that is none. Never raises."""
    if len(line) > MAX_LINE or sum(map(line.count, (b"{", b"[", b","))) > MAX_MARKS:
        return [AgentLog(stream="stdout", text=f"[a line of {len(line)} bytes was dropped]")]
    if not line.strip():
        return []
    try:
        data = clean(json.loads(line, parse_constant=str))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        return [AgentLog(stream="stdout", text=cut(line[: 4 * MAX_TEXT].decode(errors="replace")))]
    return data


def dicts(value: Any) -> list[Json]:
    """The objects in `value`, if it is a list."""
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def name(value: Any) -> str:
    """`value` as a name or an id of bounded length; "" if it is no string."""
    return str(value)[:MAX_NAME] if isinstance(value, str) else ""


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """The beginning of `text`, with a note if that is not all."""
    note = "… [cut]"
    return text if len(text) <= limit else text[: limit - len(note)] + note


def fitting(text: str) -> str:
    """The beginning of `text` that an event can hold, however many bytes its characters take."""
    limit = MAX_OUTPUT
    while len(json.dumps(text := cut(text, limit), ensure_ascii=False).encode()) > MAX_OUTPUT + _ESCAPES:
        limit = len(text) * 3 // 4
    return text


def clean(value: Any) -> Any:
    """`value` without lone surrogates, which JSON can escape and UTF-8 cannot hold."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [clean(v) for v in value]
    if isinstance(value, dict):
        return {clean(k): clean(v) for k, v in value.items()}
    return value


def shallow(value: Any, left: int = MAX_DEPTH) -> Any:
    """`value` with what lies deeper than `left` levels replaced by a note."""
    if not isinstance(value, dict | list):
        return value
    if not left:
        return "[nested too deeply]"
    if isinstance(value, list):
        return [shallow(v, left - 1) for v in value]
    return {k: shallow(v, left - 1) for k, v in value.items()}
