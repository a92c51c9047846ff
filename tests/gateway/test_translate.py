"""Anthropic Messages to Chat Completions and back: shapes, streams, tools, and the whole way over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.upstream_server import Bench, Replier, Seen
from voidbox_lab.errors import UserError
from voidbox_lab.gateway.sse import Splitter, event_json
from voidbox_lab.gateway.translate.request import to_chat
from voidbox_lab.gateway.translate.response import to_message
from voidbox_lab.gateway.translate.stream import StreamTranslator
from voidbox_lab.gateway.upstream import UpstreamBroke
from voidbox_lab.spec import Tokens

TOOLS = [
    {"name": "bash", "description": "runs", "input_schema": {"type": "object", "properties": {"command": {}}}}
]
REQUEST: dict[str, Any] = {
    "model": "m",
    "max_tokens": 99,
    "temperature": 0.5,
    "stop_sequences": ["END"],
    "metadata": {"user_id": "somebody"},
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "tools": TOOLS,
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "messages": [
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "bash", "input": {"command": "ls"}},
                {"type": "tool_use", "id": "t2", "name": "bash", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Go on."},
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a.txt"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "boom", "is_error": True},
            ],
        },
    ],
}


def test_a_request() -> None:
    """System, calls, results in the order Chat demands, tools, limits; nothing that identifies."""
    assert to_chat(REQUEST) == {
        "model": "m",
        "max_tokens": 99,
        "temperature": 0.5,
        "stop": ["END"],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "tools": [
            {
                "type": "function",
                "function": {"name": "bash", "description": "runs", "parameters": TOOLS[0]["input_schema"]},
            }
        ],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "look"},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {
                        "id": "t1",
                        "type": "function",
                        "function": {"name": "bash", "arguments": '{"command": "ls"}'},
                    },
                    {"id": "t2", "type": "function", "function": {"name": "bash", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "a.txt"},
            {"role": "tool", "tool_call_id": "t2", "content": "Error: boom"},
            {"role": "user", "content": "Go on."},
        ],
    }


def test_openai_itself_names_the_bound_differently() -> None:
    """Its newer models refuse max_tokens, most other servers know nothing else."""
    assert to_chat(REQUEST, openai_itself=True)["max_completion_tokens"] == 99
    assert "max_tokens" not in to_chat(REQUEST, openai_itself=True)


def test_images_become_data_urls() -> None:
    """Beside text, in a list of parts."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, image]}]}
    parts = to_chat(body)["messages"][0]["content"]
    assert parts[1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}


@pytest.mark.parametrize("body", [{}, {"messages": "hi"}, {"messages": [1]}])
def test_what_is_no_request(body: dict[str, Any]) -> None:
    """Refused before anybody is asked."""
    with pytest.raises(UserError, match="no list of messages"):
        to_chat(body)


def test_an_answer() -> None:
    """Text, calls, the true reason for the end, counts without the cached ones."""
    function = {"name": "bash", "arguments": '{"command": "ls"}'}
    message = {"content": "Look:", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
    usage = {"prompt_tokens": 11, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 1}}
    # Some servers say "stop" after tool calls.
    answer = {"id": "x", "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    said = to_message(answer, "m")
    assert said["content"] == [
        {"type": "text", "text": "Look:"},
        {"type": "tool_use", "id": "c1", "name": "bash", "input": {"command": "ls"}},
    ]
    assert said["stop_reason"] == "tool_use"
    assert (said["usage"]["input_tokens"], said["usage"]["cache_read_input_tokens"]) == (10, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"), [("{bad", {"invalid_json": "{bad"}), ("", {}), ("[1]", {"value": [1]})]
)
def test_arguments_that_are_no_object(arguments: str, expected: dict[str, Any]) -> None:
    """They reach the tool visibly wrong, instead of breaking the conversation."""
    calls = [{"id": "c", "function": {"name": "f", "arguments": arguments}}]
    answer = {"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}
    assert to_message(answer, "m")["content"][0]["input"] == expected


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{}]}, {"choices": ["x"]}])
def test_what_is_no_answer(answer: dict[str, Any]) -> None:
    """A server that speaks something else is named as such."""
    with pytest.raises(UpstreamBroke, match="Chat Completions"):
        to_message(answer, "m")


def _delta(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _call(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    head = {"id": f"c{index}"} if name else {}
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, **head, "function": function}


def _rebuilt(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The message that a strict reader of Anthropic's stream builds from `events`."""
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_stop"
    blocks: list[dict[str, Any]] = []
    is_open = False
    end: dict[str, Any] = {}
    for event in events[1:-1]:
        match event["type"]:
            case "content_block_start":
                assert not is_open, "blocks come one after the other"
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
                is_open = True
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(blocks) - 1
                delta = event["delta"]
                if delta["type"] == "text_delta":
                    blocks[-1]["text"] += delta["text"]
                else:
                    blocks[-1]["json"] += delta["partial_json"]
            case "content_block_stop":
                assert is_open
                is_open = False
            case "message_delta":
                assert not is_open
                end = event
    return blocks, end


def test_a_stream_with_interleaved_calls_and_text_between() -> None:
    """Whatever the order of the pieces, each block is whole and in its place."""
    chunks = [
        _delta(role="assistant", content=""),
        _delta(content="Look"),
        _delta(content="ing."),
        _delta(tool_calls=[_call(0, "", "bash"), _call(1, '{"b"', "read")]),
        _delta(tool_calls=[_call(0, '{"a"')]),
        _delta(content="Late."),
        _delta(tool_calls=[_call(1, ": 2}"), _call(0, ": 1}")]),
        _delta("tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 5}},
    ]
    translator = StreamTranslator("m")
    events = [e for c in chunks for e in translator.feed(c)] + translator.finish()
    blocks, end = _rebuilt(events)
    assert [b["type"] for b in blocks] == ["text", "tool_use", "text", "tool_use"]
    assert [b.get("text") for b in blocks if b["type"] == "text"] == ["Looking.", "Late."]
    calls = [(b["id"], b["name"], json.loads(b["json"])) for b in blocks if b["type"] == "tool_use"]
    assert calls == [("c0", "bash", {"a": 1}), ("c1", "read", {"b": 2})]
    assert end["delta"]["stop_reason"] == "tool_use"
    assert end["usage"]["input_tokens"] == 8


def test_text_streams_at_once() -> None:
    """A piece of text does not wait for the next."""
    translator = StreamTranslator("m")
    translator.feed(_delta(role="assistant"))
    assert translator.feed(_delta(content="a"))[-1]["delta"] == {"type": "text_delta", "text": "a"}


def test_an_empty_stream_is_a_whole_message() -> None:
    """Nothing said is still a message."""
    blocks, end = _rebuilt(StreamTranslator("m").finish())
    assert (blocks, end["delta"]["stop_reason"]) == ([], "end_turn")


@pytest.mark.anyio
async def test_over_http_streamed(lab: Bench) -> None:
    """An agent's Messages request to an OpenAI-compatible server, metered on the way back."""

    async def answer(seen: Seen, reply: Replier) -> None:
        assert seen.path == "/v1/chat/completions"
        assert seen.body["stream_options"] == {"include_usage": True}
        assert seen.body["model"] == "local"
        await reply.start()
        await reply.chunk(_delta(role="assistant"))
        await reply.chunk(_delta(content="Hel"))
        await reply.chunk(_delta("stop", content="lo"))
        await reply.chunk({"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 5}})
        await reply.chunk(b"data: [DONE]\n\n", last=True)

    lab.provider.handler = answer
    async with lab.client(lab.register("openai:local@{url}/v1")) as client:
        r = await client.post("/v1/messages", json={**REQUEST, "stream": True})
    assert r.headers["content-type"] == "text/event-stream"
    splitter = Splitter()
    events = [e for raw in splitter.feed(r.content) if (e := event_json(raw))]
    blocks, end = _rebuilt(events)
    assert blocks[0]["text"] == "Hello"
    assert end["delta"]["stop_reason"] == "end_turn"
    assert (await lab.reported()).tokens == Tokens(input=8, output=5)
    assert "x-api-key" not in lab.provider.seen[0].headers


@pytest.mark.anyio
async def test_over_http_whole_and_errors(lab: Bench) -> None:
    """Answers and errors alike arrive in the shape of the API that was asked."""
    answers: list[tuple[int, Any]] = [
        (200, {"choices": [{"message": {"content": "Hi"}, "finish_reason": "length"}]}),
        (429, {"error": {"message": "Slow down", "type": "rate_limit"}}),
        (200, b"<html>"),
    ]

    async def answer(_: Seen, reply: Replier) -> None:
        status, value = answers.pop(0)
        await reply.json(value, status)

    lab.provider.handler = answer
    async with lab.client(lab.register("openai:local")) as client:
        whole, limited, broken = [await client.post("/v1/messages", json=REQUEST) for _ in range(3)]
    assert whole.json()["content"] == [{"type": "text", "text": "Hi"}]
    assert whole.json()["stop_reason"] == "max_tokens"
    assert limited.status_code == 429
    assert limited.json()["error"] == {"type": "rate_limit_error", "message": "Slow down"}
    assert broken.status_code == 502


@pytest.mark.anyio
async def test_a_translated_stream_that_breaks_off(lab: Bench) -> None:
    """Without a reason for the end there was none; the agent must not take it for a whole answer."""

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.start()
        await reply.chunk(_delta(content="Hel"), last=True)

    lab.provider.handler = answer
    async with lab.client(lab.register("openai:local")) as client:
        r = await client.post("/v1/messages", json={**REQUEST, "stream": True})
    assert "event: error" in r.text
    assert "message_stop" not in r.text
