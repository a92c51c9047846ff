"""The file tools: read, write, edit. Bounded; they touch regular files only."""

from __future__ import annotations

import os
import stat

from lab_agent.tools.tool import Tool, ToolProblem

MAX_READ = 256 * 1024
"""Most bytes one read returns."""
MAX_LINES = 2000
MAX_LINE = 2000
MAX_EDITED = 8 << 20


def tools() -> list[Tool]:
    """read, write and edit."""
    path = {"file_path": {"type": "string", "description": "absolute, or relative to the working directory"}}
    text = {"type": "string"}
    number = {"type": "integer"}
    return [
        Tool(
            "read",
            f"Reads a text file; returns numbered lines, at most {MAX_LINES} from line 'offset' (from 1) on.",
            _schema({**path, "offset": number, "limit": number}, "file_path"),
            lambda given: read(given["file_path"], given.get("offset", 1), given.get("limit", MAX_LINES)),
        ),
        Tool(
            "write",
            "Writes a whole file, and the directories above it; what was in it is replaced.",
            _schema({**path, "content": text}, "file_path", "content"),
            lambda given: write(given["file_path"], given["content"]),
        ),
        Tool(
            "edit",
            "Replaces text in a file. 'old_string' must occur exactly once, unless 'replace_all' is true.",
            _schema(
                {**path, "old_string": text, "new_string": text, "replace_all": {"type": "boolean"}},
                "file_path",
                "old_string",
                "new_string",
            ),
            lambda given: edit(
                given["file_path"], given["old_string"], given["new_string"], given.get("replace_all", False)
            ),
        ),
    ]


def _schema(properties: dict, *required: str) -> dict:
    return {"type": "object", "properties": properties, "required": list(required)}


def read(path: str, offset: int, limit: int) -> str:
    """Lines of a file with their numbers."""
    _regular(path)
    first, count = max(offset, 1), min(max(limit, 1), MAX_LINES)
    out: list[str] = []
    size = 0
    number = 0
    with open(path, encoding="utf-8", errors="replace", newline="\n") as f:
        # readline with a bound: a file without line breaks must not be read whole.
        while line := f.readline(MAX_READ):
            number += 1
            if number < first:
                continue
            if len(out) >= count or size >= MAX_READ:
                out.append(f"[more from line {number} on]")
                break
            line = line.rstrip("\n")
            line = line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}… [line cut]"
            out.append(f"{number:6}\t{line}")
            size += len(line)
    if not out:
        return "[the file is empty]" if number == 0 else f"[the file has only {number} lines]"
    return "\n".join(out)


def write(path: str, content: str) -> str:
    """Write a file."""
    if os.path.lexists(path):
        _regular(path)
    if directory := os.path.dirname(path):
        os.makedirs(directory, exist_ok=True)
    data = content.encode(errors="replace")
    with open(path, "wb") as f:
        f.write(data)
    return f"Wrote {len(data)} bytes to {path}."


def edit(path: str, old: str, new: str, replace_all: bool) -> str:
    """Replace text in a file."""
    _regular(path)
    if os.path.getsize(path) > MAX_EDITED:
        raise ToolProblem(f"{path} is larger than {MAX_EDITED} bytes; use bash.")
    if not old or old == new:
        raise ToolProblem("'old_string' must not be empty, nor the same as 'new_string'.")
    try:
        with open(path, encoding="utf-8", newline="") as f:
            text = f.read()
    except UnicodeDecodeError as e:
        raise ToolProblem(f"{path} is not UTF-8 text.") from e
    count = text.count(old)
    if count == 0:
        raise ToolProblem(f"'old_string' does not occur in {path}; read it again.")
    if count > 1 and not replace_all:
        raise ToolProblem(f"'old_string' occurs {count} times in {path}; give more of it, or set 'replace_all'.")
    with open(path, "w", encoding="utf-8", newline="") as f:
        f.write(text.replace(old, new))
    return f"Replaced {count} occurrence{'s' if count > 1 else ''} in {path}."


def _regular(path: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ToolProblem(f"{path} is not a regular file.")
