"""The parser of claude-code's events: what it reads, what it bounds, what it believes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.agents.claude_stream import MAX_OPEN, ClaudeStreamParser
from voidbox_lab.agents.jsonl import MAX_LINE, MAX_OUTPUT
from voidbox_lab.spec.events import (
    BODY,
    MAX_TEXT,
    AgentLog,
    AgentText,
    Body,
    Event,
    StageChanged,
    ToolCall,
    ToolResult,
)
from voidbox_lab.store import MAX_EVENT_BYTES


def _line(**event: Any) -> bytes:
    return json.dumps(event).encode()


def _start(message: str, parent: str | None = None) -> bytes:
    event = {"type": "message_start", "message": {"id": message}}
    return _line(type="stream_event", event=event, parent_tool_use_id=parent)


def _delta(text: str, index: int = 0, parent: str | None = None) -> bytes:
    event = {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}
    return _line(type="stream_event", event=event, parent_tool_use_id=parent)


def _assistant(message: str, *blocks: dict[str, Any]) -> bytes:
    return _line(type="assistant", message={"id": message, "role": "assistant", "content": list(blocks)})


def _block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _feed(parser: ClaudeStreamParser, *lines: bytes) -> list[Body]:
    return [body for line in lines for body in parser.feed(line)]


def _texts(bodies: list[Body]) -> dict[int, str]:
    out: dict[int, str] = {}
    for body in bodies:
        if isinstance(body, AgentText):
            out[body.block] = out.get(body.block, "") + body.text
    return out


RECORDED = [
    _line(type="system", subtype="init", cwd="/workspace", tools=["Bash"], model="m", some_new_field={"a": [1]}),
    _line(type="system", subtype="status", status="requesting"),
    _assistant("m1", _block("I will run a command.")),
    _assistant("m1", {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "echo hi"}}),
    _line(
        type="user",
        message={
            "role": "user",
            "content": [{"tool_use_id": "t1", "type": "tool_result", "content": "hi", "is_error": False}],
        },
        tool_use_result={"stdout": "hi"},
    ),
    _assistant("m2", {"type": "thinking", "thinking": "hm"}, _block("Done: it printed hi.")),
    _line(type="result", subtype="success", is_error=False, num_turns=2, result="Done: it printed hi."),
]
"""The shape of a run of 2.1.330 without partial messages, one event per content block."""


def test_a_recorded_run() -> None:
    """Text, call, result, text; thinking and unknown types are passed over."""
    parser = ClaudeStreamParser()
    assert _feed(parser, *RECORDED) == [
        AgentText(text="I will run a command.", block=0),
        ToolCall(id="t1", name="Bash", input={"command": "echo hi"}),
        ToolResult(id="t1", content="hi"),
        AgentText(text="Done: it printed hi.", block=1),
    ]
    result = parser.finish(0)
    assert (result.output, result.is_error, result.turns) == ("Done: it printed hi.", False, 2)


def test_streamed_text_is_not_said_twice() -> None:
    """Deltas are shown as they come; the whole block adds only what they lacked."""
    parser = ClaudeStreamParser()
    bodies = _feed(
        parser,
        _start("m1"),
        _delta("Hel"),
        _delta("lo"),
        _assistant("m1", _block("Hello")),
        _delta("Sec", index=2),
        _assistant("m1", _block("Second")),
        _assistant("m1", _block("never streamed")),
        _start("m2"),
        _delta("Hello"),
        _assistant("m2", _block("Hello")),
    )
    assert _texts(bodies) == {0: "Hello", 1: "Second", 2: "never streamed", 3: "Hello"}


def test_sub_agents_stream_beside_the_agent() -> None:
    """Their deltas are told apart by the call that started them."""
    parser = ClaudeStreamParser()
    bodies = _feed(
        parser,
        _start("m1"),
        _start("s1", "toolu_1"),
        _delta("ma"),
        _delta("su", parent="toolu_1"),
        _delta("in"),
        _delta("b", parent="toolu_1"),
        _assistant("s1", _block("sub")),
        _assistant("m1", _block("main")),
    )
    assert _texts(bodies) == {0: "main", 1: "sub"}


def test_a_failed_run_that_says_success() -> None:
    """`is_error` and the exit code are believed, `subtype` is not."""

    def finished(exit_code: int | None, **result: Any) -> tuple[str | None, bool]:
        parser = ClaudeStreamParser()
        if result:
            parser.feed(_line(type="result", **result))
        end = parser.finish(exit_code)
        return end.output, end.is_error

    assert finished(1, subtype="success", is_error=True, result="API Error") == ("API Error", True)
    assert finished(1, subtype="success", is_error=False, result="fine") == ("fine", True)
    assert finished(None, subtype="success", is_error=False, result="fine") == ("fine", True)
    assert finished(0, subtype="success", result="is_error is missing") == ("is_error is missing", True)
    assert finished(0) == (None, True)
    assert finished(0, is_error=False, result="") == (None, False)
    assert finished(0, is_error=True, errors=["a", "b"]) == ("a; b", True)
    assert finished(0, is_error=False, result="fine") == ("fine", False)


def test_what_is_no_event_is_logged() -> None:
    """A warning of the runtime, say, or a command that writes to the wrong place."""
    parser = ClaudeStreamParser()
    for line in (b"Warning: something", b"[1, 2]", b'"text"', b"{broken", b"\xff\xfe", b"[" * 100_000):
        [body] = parser.feed(line)
        assert isinstance(body, AgentLog)
        assert body.stream == "stdout"
    assert parser.feed(b"") == parser.feed(b"  \r") == []


def test_retries_are_seen() -> None:
    """They explain a silence."""
    line = _line(type="system", subtype="api_retry", attempt=1, max_retries=5, error="529 overloaded")
    assert "retry 1 of 5: 529 overloaded" in ClaudeStreamParser().feed(line)[0].text  # type: ignore[union-attr]


def test_everything_is_bounded() -> None:
    """Lines, texts, results, names, the final answer, the number of open blocks."""
    parser = ClaudeStreamParser()
    [dropped] = parser.feed(b"{" + b"x" * MAX_LINE)
    assert isinstance(dropped, AgentLog)
    assert "dropped" in dropped.text
    long = "ab" * MAX_TEXT
    pieces = parser.feed(_assistant("m", _block(long)))
    assert [len(p.text) for p in pieces if isinstance(p, AgentText)] == [MAX_TEXT, MAX_TEXT]
    assert _texts(pieces) == {0: long}
    result = {"type": "tool_result", "tool_use_id": "t" * 5000, "content": [_block(long), {"type": "image"}]}
    [answer] = parser.feed(_line(type="user", message={"content": [result]}))
    assert isinstance(answer, ToolResult)
    assert len(answer.content) == MAX_TEXT
    assert answer.content.endswith("[cut]")
    assert len(answer.id) < 1000
    parser.feed(_line(type="result", is_error=False, result="x" * (MAX_OUTPUT + 1)))
    assert len(parser.finish(0).output or "") == MAX_OUTPUT
    parser.feed(_start("flood"))
    flood = _feed(parser, *(_delta("x", index=i) for i in range(10 * MAX_OPEN)))
    assert len(flood) <= MAX_OPEN


@pytest.mark.parametrize("depth", [30, 150, 220, 300, 900])
@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]")])
def test_a_deep_tool_input_can_be_recorded_and_read_back(depth: int, opening: str, closing: str) -> None:
    """What cannot be written or read would take the whole record with it."""
    value = opening * depth + "1" + closing * depth
    line = _line(type="assistant", message={"content": [{"type": "tool_use", "input": "@"}]})
    for body in ClaudeStreamParser().feed(line.replace(b'"@"', value.encode())):
        event = Event(seq=1, run="r", at=0, body=body)
        assert Event.model_validate_json(event.model_dump_json()) == event
        if isinstance(body, ToolCall):
            assert ("nested too deeply" in str(body.input)) is (depth > 32)
        else:
            assert depth == 900


@pytest.mark.parametrize("element", [b'{"":0},', b"[],", b"0,", b'{"type":"text","text":"a"},'])
def test_a_line_that_costs_more_than_its_length_is_dropped(element: bytes) -> None:
    """Eight megabytes of tiny values would fill half a gigabyte and hold up the event loop for seconds."""
    content = element * ((MAX_LINE - 100) // len(element)) + b"0"
    [dropped] = ClaudeStreamParser().feed(b'{"type":"assistant","message":{"content":[' + content + b"]}}")
    assert isinstance(dropped, AgentLog)
    assert "dropped" in dropped.text


@pytest.mark.parametrize("character", ["x", "\N{GRINNING FACE}", "\x01", "\n", '"', "\xe9"])
def test_the_longest_answer_fits_an_event(character: str) -> None:
    """Else the event that says the stage has succeeded would be refused, and the stage never end."""
    parser = ClaudeStreamParser()
    for line in (character * 1_100_000, f"{character * 300_000} and the rest"):
        parser.feed(json.dumps({"type": "result", "is_error": False, "result": line}, ensure_ascii=False).encode())
        output = parser.finish(0).output
        assert output is not None
        assert len(output) > 50_000
        body = BODY.dump_json(StageChanged(state="succeeded", output=output))
        assert len(body) <= MAX_EVENT_BYTES


def test_lone_surrogates_do_not_reach_the_record() -> None:
    """JSON can escape what UTF-8 cannot hold."""
    line = b'{"type": "assistant", "message": {"id": "m", "content": [{"type": "text", "text": "a\\ud800b"}, '
    line += b'{"type": "tool_use", "id": "t", "name": "n", "input": {"\\udfff": ["\\ud83d\\ude00", NaN]}}]}}'
    text, call = ClaudeStreamParser().feed(line)
    assert text == AgentText(text="a?b")
    assert isinstance(call, ToolCall)
    assert call.input == {"?": ["😀", "NaN"]}
    BODY.dump_json(call)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_TYPES = ["system", "assistant", "user", "result", "stream_event", "other"]
_KEYS = ["type", "subtype", "message", "event", "content", "id", "index", "delta", "text", "input", "name"]
_event = st.dictionaries(
    st.sampled_from([*_KEYS, "is_error", "result", "num_turns", "parent_tool_use_id"]),
    st.sampled_from(
        [*_TYPES, "message_start", "content_block_delta", "text_delta", "text", "tool_use", "tool_result"]
    )
    | st.dictionaries(st.sampled_from(_KEYS), _json | st.lists(st.dictionaries(st.sampled_from(_KEYS), _json)))
    | _json,
)


@given(
    st.lists(_event.map(lambda e: json.dumps(e).encode()) | st.binary(max_size=60), max_size=8),
    st.none() | st.integers(0, 255),
)
def test_no_line_breaks_it(lines: list[bytes], exit_code: int | None) -> None:
    """Whatever a box prints, the parser returns valid, storable events and a result."""
    parser = ClaudeStreamParser()
    for line in lines:
        for body in parser.feed(line):
            BODY.validate_json(BODY.dump_json(body))
    result = parser.finish(exit_code)
    assert result.is_error or exit_code == 0


@pytest.mark.parametrize("content", [None, 5, "text", [1, None], [{"type": "tool_result"}]])
def test_tool_results_of_odd_shapes(content: Any) -> None:
    """Read as far as they can be."""
    bodies = ClaudeStreamParser().feed(_line(type="user", message={"content": content}))
    assert all(isinstance(b, ToolResult) and b.content == "" for b in bodies)


def test_servers_that_did_not_start_fail_the_stage() -> None:
    """However well it did without them."""
    parser = ClaudeStreamParser()
    servers = [{"name": "time", "status": "connected"}, {"name": "git", "status": "failed"}]
    [said] = _feed(parser, _line(type="system", subtype="init", mcp_servers=servers))
    assert said == AgentLog(stream="stdout", text="MCP servers that did not start: git")
    parser.feed(_line(type="result", is_error=False, result="All done.", num_turns=1))
    result = parser.finish(0)
    assert (result.output, result.is_error) == ("MCP servers that did not start: git", True)
