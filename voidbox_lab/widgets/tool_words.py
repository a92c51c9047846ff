"""A tool call's arguments as a view shows them: all of them, bounded, and the telling one on one line."""

from __future__ import annotations

import json
from typing import Any

from voidbox_lab.widgets.text import Clip, clean, one_line

MAX_ARGUMENTS = 4096
"""Characters of a tool call's arguments, as JSON."""


def arguments(value: dict[str, Any]) -> str:
    """All arguments, one after the other."""
    # Multi-line strings (scripts, mostly) read better as they are than as JSON escapes.
    lines: list[str] = []
    for name, item in list(value.items())[:50]:
        shown = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=str)
        shown = clean(shown[: MAX_ARGUMENTS + 1])
        lines.append(f"{one_line(str(name), 80)}:" + (f"\n{shown}" if "\n" in shown else f" {shown}"))
    return Clip.of("\n".join(lines), head=MAX_ARGUMENTS - 512, tail=512).text


def summary(value: dict[str, Any]) -> str:
    """The telling argument."""
    for key in ("command", "file_path", "path", "pattern", "url", "query"):
        if isinstance(value.get(key), str):
            return one_line(value[key], 160)
    first = next((v for v in value.values() if isinstance(v, str)), "")
    return one_line(first, 160)
