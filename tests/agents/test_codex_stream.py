"""The parser of codex's events: what it reads, what it bounds, what it believes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.agents.codex_stream import MAX_OPEN, CodexStreamParser
from voidbox_lab.agents.jsonl import MAX_LINE, MAX_OUTPUT
from voidbox_lab.spec.events import BODY, MAX_TEXT, AgentLog, AgentText, Body, ToolCall, ToolResult

SHELL = {"type": "command_execution", "id": "item_1", "command": "/bin/bash -lc 'echo hi'"}
MCP = {"type": "mcp_tool_call", "id": "item_2", "server": "time", "tool": "get_current_time"}
SESSION: list[dict[str, Any]] = [
    # As codex 0.169.0 wrote it, shortened.
    {"type": "thread.started", "thread_id": "01a21108-0e84-71b3-975a-883e639f8e8a"},
    {"type": "item.completed", "item": {"id": "item_0", "type": "error", "message": "Model metadata not found."}},
    {"type": "turn.started"},
    {
        "type": "item.started",
        "item": {**SHELL, "aggregated_output": "", "exit_code": None, "status": "in_progress"},
    },
    {"type": "item.completed", "item": {**SHELL, "aggregated_output": "hi\n", "exit_code": 3, "status": "failed"}},
    {"type": "item.started", "item": {**MCP, "arguments": {"timezone": "UTC"}, "result": None, "error": None}},
    {
        "type": "item.completed",
        "item": {
            **MCP,
            "arguments": {"timezone": "UTC"},
            "result": {"content": [{"type": "text", "text": "noon"}, {"type": "image", "data": "AAAA"}]},
            "error": None,
            "status": "completed",
        },
    },
    {"type": "item.completed", "item": {"id": "item_3", "type": "agent_message", "text": "I look again."}},
    {"type": "item.completed", "item": {"id": "item_4", "type": "agent_message", "text": "It is noon."}},
    {"type": "turn.completed", "usage": {"input_tokens": 20241, "output_tokens": 89}},
]


def _feed(parser: CodexStreamParser, *events: dict[str, Any]) -> list[Body]:
    return [body for event in events for body in parser.feed(json.dumps(event).encode())]


def _item(kind: str, **item: Any) -> dict[str, Any]:
    return {"type": f"item.{kind}", "item": item}


def test_a_session() -> None:
    """Calls and results are paired by their ids; the last message is the answer."""
    parser = CodexStreamParser()
    assert _feed(parser, *SESSION) == [
        AgentLog(stream="stdout", text="Model metadata not found."),
        ToolCall(id="item_1", name="command_execution", input={"command": "/bin/bash -lc 'echo hi'"}),
        ToolResult(id="item_1", content="hi\n[exit code 3]", is_error=True),
        ToolCall(id="item_2", name="mcp__time__get_current_time", input={"timezone": "UTC"}),
        ToolResult(id="item_2", content="noon\n[image]"),
        AgentText(text="I look again.", block=0),
        AgentText(text="It is noon.", block=1),
    ]
    result = parser.finish(0)
    assert (result.output, result.is_error) == ("It is noon.", False)
    assert parser.finish(1).is_error, "the exit code decides"


def test_a_failed_turn() -> None:
    """Says what went wrong, not what was said before."""
    parser = CodexStreamParser()
    busy = "We are currently experiencing high demand."
    bodies = _feed(
        parser,
        {"type": "turn.started"},
        _item("completed", id="item_0", type="agent_message", text="I begin."),
        {"type": "error", "message": "Reconnecting... 1/5"},
        {"type": "turn.failed", "error": {"message": busy}},
    )
    assert AgentLog(stream="stdout", text="Reconnecting... 1/5") in bodies
    assert (parser.finish(1).output, parser.finish(1).is_error) == (busy, True)
    assert CodexStreamParser().finish(0).is_error, "a session that never ended"


def test_calls_that_are_only_seen_at_their_end() -> None:
    """Are shown as begun and ended; changes of files by their paths."""
    parser = CodexStreamParser()
    changes = [{"path": "/workspace/a.py", "kind": "add"}, {"path": "/workspace/b.py", "kind": "delete"}]
    call, result = _feed(
        parser, _item("completed", id="i", type="file_change", changes=changes, status="completed")
    )
    assert call == ToolCall(id="i", name="file_change", input={"changes": changes})
    assert result == ToolResult(id="i", content="add /workspace/a.py\ndelete /workspace/b.py")
    failed = {**MCP, "arguments": {}, "error": {"message": "gone"}, "status": "failed"}
    assert _feed(parser, _item("completed", **failed))[1] == ToolResult(id="item_2", content="gone", is_error=True)


def test_it_is_bounded() -> None:
    """Lines, texts, answers, open calls."""
    parser = CodexStreamParser()
    assert parser.feed(b"x" * (MAX_LINE + 1)) == [
        AgentLog(stream="stdout", text=f"[a line of {MAX_LINE + 1} bytes was dropped]")
    ]
    texts = _feed(parser, _item("completed", id="a", type="agent_message", text="x" * (MAX_OUTPUT + 1)))
    assert [len(t.text) for t in texts if isinstance(t, AgentText)][:2] == [MAX_TEXT, MAX_TEXT]
    _feed(parser, {"type": "turn.completed"})
    assert len(parser.finish(0).output or "") == MAX_OUTPUT
    begun = _feed(parser, *(_item("started", **{**SHELL, "id": f"n{n}"}) for n in range(MAX_OPEN + 5)))
    assert len(begun) == MAX_OPEN
    [result] = _feed(parser, _item("completed", **{**SHELL, "id": "n0", "aggregated_output": "y" * MAX_TEXT * 2}))
    assert isinstance(result, ToolResult)
    assert len(result.content) == MAX_TEXT


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(
    ["command_execution", "mcp_tool_call", "file_change", "web_search", "agent_message", "error"]
)
KEYS = ("id", "text", "message", "command", "server", "tool", "arguments", "result", "error", "changes", "status")


@given(
    st.sampled_from(["item.started", "item.completed", "turn.failed", "error", "turn.completed"]),
    KINDS,
    st.dictionaries(st.sampled_from([*KEYS, "exit_code", "aggregated_output"]), JSON),
    JSON,
)
def test_nothing_from_a_box_makes_it_raise(kind: str, item: str, fields: dict[str, Any], error: Any) -> None:
    """And all that it says is an event that can be stored."""
    parser = CodexStreamParser()
    line = json.dumps({"type": kind, "item": {**fields, "type": item}, "error": error, "message": error})
    for body in parser.feed(line.encode()):
        assert BODY.validate_json(BODY.dump_json(body)) == body
    assert isinstance(parser.finish(0).is_error, bool)


@pytest.mark.parametrize(
    "line", [b"", b"  ", b"null", b"[]", b"{", b"\xff", b'{"type": "item.started", "item": 1}']
)
def test_what_is_no_event(line: bytes) -> None:
    """Is a line of the log, or nothing."""
    assert all(isinstance(body, AgentLog) for body in CodexStreamParser().feed(line))
