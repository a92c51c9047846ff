"""Maps a script's tool roles onto whatever tools the client offers."""

from __future__ import annotations

import hashlib
import json
import posixpath
import shlex
from collections.abc import Sequence
from typing import Any

from voidbox_lab.gateway.scripted.conversation import Tool

_SHELLS = ("Bash", "bash", "exec_command", "shell_command", "shell", "local_shell", "run_shell_command", "exec")
_SHELL_WORDS = ("bash", "shell", "exec", "terminal", "command")
_WRITERS = ("Write", "write", "write_file", "create_file")
_FILLERS: dict[str, Any] = {"integer": 10, "number": 10, "boolean": False, "array": [], "object": {}}


def shell_tool(tools: Sequence[Tool]) -> Tool | None:
    """The tool that runs commands, if any."""
    by_name = {t.name: t for t in tools}
    exact = next((by_name[n] for n in _SHELLS if n in by_name), None)
    return exact or next((t for t in tools if any(w in t.name.lower() for w in _SHELL_WORDS)), None)


def named_tool(tools: Sequence[Tool], name: str) -> Tool:
    """The tool called `name`. One that is not offered is called all the same: some clients offer tools by and by,
    and the others say what they think of it."""
    full = {t.name if t.namespace is None else f"{t.namespace}__{t.name}": t for t in tools}
    return full.get(name) or Tool(name, {})


def write_tool(tools: Sequence[Tool]) -> Tool | None:
    """The tool that writes a whole file, if any."""
    by_name = {t.name: t for t in tools}
    return next((by_name[n] for n in _WRITERS if n in by_name), None)


def shell_input(tool: Tool, command: str) -> dict[str, Any]:
    """`command` as input of `tool`."""
    if tool.kind == "local_shell":
        return {"type": "exec", "command": ["bash", "-lc", command], "env": {}}
    if tool.kind == "custom":
        # codex's code mode: a program in JavaScript that calls the real tool.
        return {"source": f"const r = await tools.exec_command({{cmd: {json.dumps(command)}}}); text(r);"}
    properties = tool.schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    name = next((n for n in ("command", "cmd", "script", "input", "code") if n in properties), "command")
    is_list = isinstance(properties.get(name), dict) and properties[name].get("type") == "array"
    return _filled(tool, {name: ["bash", "-lc", command] if is_list else command})


def write_input(tool: Tool, path: str, content: str) -> dict[str, Any]:
    """A file as input of `tool`."""
    properties = tool.schema.get("properties") or {}
    at = next((n for n in ("file_path", "path", "filename", "absolute_path") if n in properties), "file_path")
    what = next((n for n in ("content", "contents", "text", "file_text") if n in properties), "content")
    return _filled(tool, {at: path, what: content})


def write_by_shell(path: str, content: str) -> str:
    """A command that writes the file, for clients without a tool for it."""
    end = "END_" + hashlib.sha256(content.encode()).hexdigest()[:12]
    content = content if content.endswith("\n") else content + "\n"
    directory = shlex.quote(posixpath.dirname(path) or ".")
    return f"mkdir -p {directory} && cat > {shlex.quote(path)} <<'{end}'\n{content}{end}"


def _filled(tool: Tool, given: dict[str, Any]) -> dict[str, Any]:
    """`given`, and something of the right type for everything else the schema requires."""
    properties = tool.schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    required = tool.schema.get("required")
    for name in required if isinstance(required, list) else []:
        if name not in given:
            kind = (properties.get(name) or {}).get("type")
            given[name] = _FILLERS.get(kind, "as asked") if isinstance(kind, str) else "as asked"
    return given
