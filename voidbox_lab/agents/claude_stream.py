"""Reads the stream-json events of claude-code, which lab-agent writes too.

Source: ``claude -p --output-format stream-json --verbose [--include-partial-messages]``, as recorded from
2.1.330. Unknown types are passed over, because every release adds some.

Text comes twice: as deltas while it is written, then as a whole block. The deltas are shown, and of the
block only what they lacked. A run may end with ``subtype: "success"`` and still have failed: ``is_error``
and the exit code decide.
"""

from __future__ import annotations

from collections.abc import Iterator

from voidbox_lab.agents import jsonl
from voidbox_lab.agents.contract import AgentResult
from voidbox_lab.agents.jsonl import Json
from voidbox_lab.spec.events import MAX_TEXT, AgentLog, AgentText, Body, ToolCall, ToolResult

MAX_OPEN = 64
"""Text blocks that may be streaming at the same time, over all messages and sub-agents."""


class ClaudeStreamParser:
    """See `contract.Parser`."""

    def __init__(self) -> None:
        self._blocks = 0
        self._message: dict[str, str] = {}
        """Sub-agent (or "") to the id of the message it is streaming."""
        self._streamed: dict[tuple[str, int], _Streamed] = {}
        """Message id and content index to the text that has come as deltas."""
        self._turns = 0
        self._last_message: str | None = None
        self._result: Json | None = None
        self._missing: list[str] = []
        """MCP servers that did not start. It goes on without them, and does something else than it was to do."""

    reads_lines = True

    def feed(self, line: bytes) -> list[Body]:
        """The events in `line`; what is no event becomes a log line."""
        data = jsonl.read(line)
        if not isinstance(data, dict):
            return [*data]
        match data.get("type"):
            case "stream_event":
                return list(self._delta(data))
            case "assistant":
                return list(self._assistant(data))
            case "user":
                return list(_tool_results(data))
            case "result":
                self._result = data
            case "system" if data.get("subtype") == "init":
                servers = jsonl.dicts(data.get("mcp_servers"))
                self._missing = [jsonl.name(s.get("name")) for s in servers if s.get("status") == "failed"]
                return [AgentLog(stream="stdout", text=self._lacks())] if self._missing else []
            case "system" if data.get("subtype") == "api_retry":
                tries = f"{data.get('attempt')} of {data.get('max_retries')}"
                return [
                    AgentLog(
                        stream="stdout", text=jsonl.cut(f"model call failed, retry {tries}: {data.get('error')}")
                    )
                ]
        return []

    def finish(self, exit_code: int | None) -> AgentResult:
        """The result; an error if the agent did not say how it ended."""
        result = self._result
        if self._missing:
            return AgentResult(self._lacks(), True, self._turns)
        if result is None:
            return AgentResult(None, True, self._turns)
        text = result.get("result")
        if not isinstance(text, str) or not text:
            errors = result.get("errors")
            text = "; ".join(str(e) for e in errors) if isinstance(errors, list) and errors else None
        said = result.get("num_turns")
        turns = said if isinstance(said, int) and 0 <= said < 1 << 31 else self._turns
        is_error = result.get("is_error") is not False or exit_code != 0
        return AgentResult(jsonl.fitting(text) if text else None, is_error, turns)

    def _lacks(self) -> str:
        return jsonl.cut(f"MCP servers that did not start: {', '.join(self._missing)}")

    def _delta(self, data: Json) -> Iterator[Body]:
        event = data.get("event")
        if not isinstance(event, dict):
            return
        agent = jsonl.name(data.get("parent_tool_use_id") or "")
        index = event.get("index")
        match event.get("type"):
            case "message_start":
                message = event.get("message")
                if len(self._message) < MAX_OPEN or agent in self._message:
                    self._message[agent] = jsonl.name(message.get("id")) if isinstance(message, dict) else ""
            case "content_block_delta" if isinstance(index, int) and agent in self._message:
                delta = event.get("delta")
                text = delta.get("text") if isinstance(delta, dict) and delta.get("type") == "text_delta" else None
                if not isinstance(text, str) or not text:
                    return
                key = (self._message[agent], index)
                if key not in self._streamed:
                    if len(self._streamed) >= MAX_OPEN:
                        return  # it will come again as a whole block
                    self._streamed[key] = _Streamed(self._next_block())
                self._streamed[key].take(text)
                yield from _text(text, self._streamed[key].block)

    def _assistant(self, data: Json) -> Iterator[Body]:
        message = data.get("message")
        if not isinstance(message, dict):
            return
        ident = jsonl.name(message.get("id"))
        if ident != self._last_message:
            self._last_message, self._turns = ident, self._turns + 1
        for block in jsonl.dicts(message.get("content")):
            if block.get("type") == "text" and isinstance(block.get("text"), str):
                yield from self._whole(ident, block["text"])
            elif block.get("type") == "tool_use":
                given = block.get("input")
                given = jsonl.shallow(given if isinstance(given, dict) else {"value": given})
                yield ToolCall(id=jsonl.name(block.get("id")), name=jsonl.name(block.get("name")), input=given)

    def _whole(self, message: str, text: str) -> Iterator[Body]:
        """A whole block: matched with the first streamed block of its message that it begins with."""
        for key, streamed in self._streamed.items():
            if key[0] == message and streamed.begins(text):
                del self._streamed[key]
                yield from _text(text[streamed.length :], streamed.block)
                return
        yield from _text(text, self._next_block())

    def _next_block(self) -> int:
        self._blocks += 1
        return self._blocks - 1


class _Streamed:
    """A text block that has come in pieces."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.length = 0
        self._pieces: list[str] = []

    def take(self, text: str) -> None:
        self.length += len(text)
        self._pieces.append(text)

    def begins(self, whole: str) -> bool:
        self._pieces = ["".join(self._pieces)]
        return whole.startswith(self._pieces[0])


def _tool_results(data: Json) -> Iterator[Body]:
    message = data.get("message")
    for block in jsonl.dicts(message.get("content")) if isinstance(message, dict) else []:
        if block.get("type") == "tool_result":
            content = block.get("content")
            if not isinstance(content, str):
                content = "\n".join(_part(p) for p in jsonl.dicts(content))
            is_error = block.get("is_error") is True
            yield ToolResult(
                id=jsonl.name(block.get("tool_use_id")), content=jsonl.cut(content), is_error=is_error
            )


def _part(part: Json) -> str:
    return str(part.get("text", "")) if part.get("type") == "text" else f"[{jsonl.name(part.get('type'))}]"


def _text(text: str, block: int) -> Iterator[AgentText]:
    for start in range(0, len(text), MAX_TEXT):
        yield AgentText(text=text[start : start + MAX_TEXT], block=block)
