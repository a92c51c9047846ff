"""Token counts of every API, streamed and whole, through a served gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.upstream_server import Bench, Replier, Seen
from voidbox_lab.gateway.api import Api
from voidbox_lab.gateway.meter import Meter, StreamMeter
from voidbox_lab.gateway.prices import cost_usd
from voidbox_lab.spec import Model, Tokens

pytestmark = pytest.mark.anyio

CHAT_USAGE = {"prompt_tokens": 110, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 100}}
RESPONSES_USAGE = {"input_tokens": 110, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 100}}
EXPECTED = Tokens(input=10, output=7, cache_read=100)


def _chat(usage: dict[str, Any] | None, **delta: str) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": None}] if delta else []
    return {"object": "chat.completion.chunk", "choices": choices, "usage": usage}


async def _chat_stream(seen: Seen, reply: Replier) -> None:
    await reply.start()
    await reply.chunk(_chat(None, content="hello"))
    if seen.body.get("stream_options", {}).get("include_usage"):
        await reply.chunk(_chat(CHAT_USAGE))
    await reply.chunk(b"data: [DONE]\n\n", last=True)


@pytest.mark.parametrize("asked", [True, False])
async def test_chat_streams_are_metered_and_usage_shown_only_on_request(lab: Bench, asked: bool) -> None:
    """The gateway asks for the counts in any case; the client gets the stream it asked for."""
    lab.provider.handler = _chat_stream
    body: dict[str, Any] = {"messages": [], "stream": True}
    if asked:
        body["stream_options"] = {"include_usage": True}
    async with lab.client(lab.register("openai:gpt-5")) as client:
        r = await client.post("/v1/chat/completions", json=body)
    assert ('"prompt_tokens"' in r.text) is asked
    assert '"hello"' in r.text
    assert r.text.endswith("data: [DONE]\n\n")
    assert (await lab.reported()).tokens == EXPECTED
    assert lab.call.cost_usd is not None


async def test_chat_whole(lab: Bench) -> None:
    """No stream, no stream options."""

    async def answer(seen: Seen, reply: Replier) -> None:
        assert "stream_options" not in seen.body
        await reply.json({"choices": [], "usage": CHAT_USAGE})

    lab.provider.handler = answer
    async with lab.client(lab.register("openai:gpt-5")) as client:
        await client.post("/v1/chat/completions", json={"messages": []})
    assert lab.call.tokens == EXPECTED


async def test_an_answer_without_usage_is_unpriced(lab: Bench) -> None:
    """A known model's answer that could not be metered has been paid for all the same."""

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.json({"choices": []})

    lab.provider.handler = answer
    async with lab.client(lab.register("openai:gpt-5")) as client:
        await client.post("/v1/chat/completions", json={"messages": []})
    assert (lab.call.status, lab.call.tokens, lab.call.cost_usd) == (200, Tokens(), None)


@pytest.mark.parametrize("stream", [True, False])
async def test_responses(lab: Bench, stream: bool) -> None:
    """``response.completed`` carries the counts of a stream."""
    done = {"id": "resp_1", "usage": RESPONSES_USAGE}

    async def answer(seen: Seen, reply: Replier) -> None:
        assert seen.path == "/v1/responses"
        if not stream:
            await reply.json(done)
            return
        await reply.start()
        await reply.chunk({"type": "response.created", "response": {"usage": None}})
        await reply.chunk({"type": "response.completed", "response": done}, last=True)

    lab.provider.handler = answer
    async with lab.client(lab.register("openai:gpt-5")) as client:
        await client.post("/v1/responses", json={"input": "hi", "stream": stream})
    assert (await lab.reported()).tokens == EXPECTED


@pytest.mark.parametrize("stream", [True, False])
async def test_ollama(lab: Bench, stream: bool) -> None:
    """Ollama streams lines of JSON, and streams unless told not to."""
    last = {"done": True, "message": {}, "prompt_eval_count": 10, "eval_count": 7}

    async def answer(seen: Seen, reply: Replier) -> None:
        assert (seen.path, seen.body["model"]) == ("/api/chat", "qwen3")
        if not stream:
            await reply.json(last)
            return
        await reply.start(kind="application/x-ndjson")
        await reply.chunk(json.dumps({"done": False}).encode() + b"\n")
        await reply.chunk(json.dumps(last).encode() + b"\n", last=True)

    lab.provider.handler = answer
    async with lab.client(lab.register("ollama:qwen3")) as client:
        body = {"messages": []} if stream else {"messages": [], "stream": False}
        r = await client.post("/api/chat", json=body)
    assert json.loads(r.text.splitlines()[-1]) == last
    assert (await lab.reported()).tokens == Tokens(input=10, output=7)
    assert lab.call.cost_usd is None, "a local model is unpriced, not free"


async def test_ollama_gets_messages_untranslated(lab: Bench) -> None:
    """It speaks the Messages API itself since 0.14."""

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.json({"type": "message", "content": [], "usage": {"input_tokens": 3, "output_tokens": 4}})

    lab.provider.handler = answer
    async with lab.client(lab.register("ollama:qwen3")) as client:
        await client.post("/v1/messages", json={"messages": [], "max_tokens": 5})
    assert lab.provider.seen[0].path == "/v1/messages"
    assert lab.call.tokens == Tokens(input=3, output=4)


def test_an_unknown_model_is_unpriced() -> None:
    """None, never zero dollars; only a scripted model costs nothing."""
    tokens = Tokens(input=1000, output=10)
    assert cost_usd(Model.parse("anthropic:no-such-model"), tokens) is None
    assert cost_usd(Model.parse("openai:gpt-4o@http://127.0.0.1:1/v1"), tokens) is None
    assert cost_usd(Model.parse("openai:gpt-4o"), None) is None
    assert cost_usd(Model.parse("scripted:echo"), tokens) == 0.0
    assert cost_usd(Model.parse("openai:gpt-4o"), Tokens(input=1_000_000)) == pytest.approx(2.5)


def test_cached_tokens_are_added_up_before_pricing() -> None:
    """Ours exclude them, the price table's include them: a cached prompt's price is not negative."""
    model = Model.parse("anthropic:claude-sonnet-4-5")
    assert cost_usd(model, Tokens(cache_read=100_000)) == pytest.approx(0.03)
    assert cost_usd(model, Tokens(input=100_000)) == pytest.approx(0.3)
    assert cost_usd(model, Tokens(input=50_000, cache_read=50_000)) == pytest.approx(0.165)


@pytest.mark.parametrize("value", [-1, 1 << 60, "5", True, None, 1.5])
def test_absurd_counts_are_missing_counts(value: Any) -> None:
    """A provider's nonsense does not become a number in a record."""
    meter = Meter(Api.MESSAGES)
    meter.body(json.dumps({"usage": {"input_tokens": value, "output_tokens": value}}).encode())
    assert meter.tokens is None


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"usage": []}'])
def test_bodies_without_counts(body: bytes) -> None:
    """Unmetered, not failed."""
    for api in Api:
        meter = Meter(api)
        meter.body(body)
        assert meter.tokens is None


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_events_are_read_however_they_are_cut(size: int, end: str) -> None:
    """Bytes pass unchanged, counts are right, wherever the pieces break."""
    events = [{"type": "message_start", "message": {"usage": {"input_tokens": 5}}}, {"type": "x", "text": "ä\n\n"}]
    events.append({"type": "message_delta", "usage": {"output_tokens": 6}})
    raw = "".join(f"event: e{end[: len(end) // 2]}data: {json.dumps(e)}{end}" for e in events).encode() + b": end"
    meter = Meter(Api.MESSAGES)
    stream = StreamMeter(meter, Api.MESSAGES)
    passed = b"".join(stream.feed(raw[i : i + size]) for i in range(0, len(raw), size)) + stream.end()
    assert passed == raw
    assert meter.tokens == Tokens(input=5, output=6)
