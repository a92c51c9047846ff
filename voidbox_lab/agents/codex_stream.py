"""Reads the events of ``codex exec --json``, as recorded from 0.169.0.

A thread holds turns, a turn items: what the agent said, ran, called or changed. Unknown events and items are
passed over, because every release adds some. There are no pieces of text, only whole ones; the last is the answer,
if the turn was completed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from voidbox_lab.agents import jsonl
from voidbox_lab.agents.contract import AgentResult
from voidbox_lab.agents.jsonl import Json
from voidbox_lab.spec.events import MAX_TEXT, AgentLog, AgentText, Body, ToolCall, ToolResult

MAX_OPEN = 256
"""Calls that may be open at the same time; what is begun beyond that is shown when it has ended."""


class CodexStreamParser:
    """See `contract.Parser`."""

    reads_lines = True

    def __init__(self) -> None:
        self._blocks = 0
        self._answer: str | None = None
        self._problem: str | None = None
        self._completed = False
        self._open: set[str] = set()

    def feed(self, line: bytes) -> list[Body]:
        """The events in `line`; what is no event becomes a log line."""
        data = jsonl.read(line)
        if not isinstance(data, dict):
            return [*data]
        item = data.get("item")
        match data.get("type"):
            case "item.started" if isinstance(item, dict):
                return list(self._started(item))
            case "item.completed" if isinstance(item, dict):
                return list(self._ended(item))
            case "turn.completed":
                self._completed = True
            case "turn.failed":
                self._problem = _message(data.get("error"))
            case "error":
                self._problem = _message(data)
                return [AgentLog(stream="stdout", text=jsonl.cut(self._problem))]
        return []

    def finish(self, exit_code: int | None) -> AgentResult:
        """The result: the last message of a completed turn; else what went wrong. codex counts no answers."""
        is_error = not self._completed or exit_code != 0
        text = self._problem if is_error and self._problem else self._answer
        return AgentResult(jsonl.fitting(text) if text else None, is_error)

    def _started(self, item: Json) -> Iterator[Body]:
        ident = jsonl.name(item.get("id"))
        call = _call(item)
        if call is not None and len(self._open) < MAX_OPEN and ident not in self._open:
            self._open.add(ident)
            yield ToolCall(id=ident, name=call[0], input=jsonl.shallow(call[1]))

    def _ended(self, item: Json) -> Iterator[Body]:
        match item.get("type"):
            case "agent_message" if isinstance(item.get("text"), str):
                self._answer = item["text"]
                for start in range(0, len(self._answer), MAX_TEXT):
                    yield AgentText(text=self._answer[start : start + MAX_TEXT], block=self._blocks)
                self._blocks += 1
            case "error":
                # Of an item it is a warning: the turn goes on.
                yield AgentLog(stream="stdout", text=jsonl.cut(_message(item)))
            case _ if _call(item) is not None:
                yield from self._started(item)
                ident = jsonl.name(item.get("id"))
                self._open.discard(ident)
                failed = item.get("status") in ("failed", "declined")
                yield ToolResult(id=ident, content=jsonl.cut(_said(item)), is_error=failed)


def _call(item: Json) -> tuple[str, Json] | None:
    """The name and input of what `item` did, if it is a call of a tool."""
    match item.get("type"):
        case "command_execution":
            return "command_execution", {"command": item.get("command")}
        case "mcp_tool_call":
            given = item.get("arguments")
            server, tool = jsonl.name(item.get("server")), jsonl.name(item.get("tool"))
            # As the other agents name them.
            return f"mcp__{server}__{tool}"[: jsonl.MAX_NAME], given if isinstance(given, dict) else {
                "value": given
            }
        case "file_change":
            return "file_change", {"changes": item.get("changes")}
        case "web_search":
            return "web_search", {"query": item.get("query")}
    return None


def _said(item: Json) -> str:
    """What a call that has ended answered."""
    match item.get("type"):
        case "command_execution":
            output = item.get("aggregated_output")
            output = output.rstrip("\n") if isinstance(output, str) else ""
            code = item.get("exit_code")
            return output if code is None or code == 0 else f"{output}\n[exit code {code}]".lstrip()
        case "mcp_tool_call":
            if item.get("error") is not None:
                return _message(item["error"])
            result = item.get("result")
            content = jsonl.dicts(result.get("content")) if isinstance(result, dict) else []
            return "\n".join(_part(p) for p in content)
        case "file_change":
            changes = jsonl.dicts(item.get("changes"))
            return "\n".join(f"{jsonl.name(c.get('kind'))} {str(c.get('path'))[:4096]}" for c in changes)
    return ""


def _part(part: Json) -> str:
    return str(part.get("text", "")) if part.get("type") == "text" else f"[{jsonl.name(part.get('type'))}]"


def _message(error: Any) -> str:
    """The words of an error. Those of a provider may be JSON in turn."""
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else json.dumps(message)
    return jsonl.cut(text) or "an error without words"
