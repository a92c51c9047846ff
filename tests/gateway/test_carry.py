"""Requests through a served gateway to a real HTTP server: keys, streams, ends, errors."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import anyio
import httpx
import pytest

from tests.gateway.upstream_server import KEY, Bench, Replier, Seen, bench
from voidbox_lab.errors import UserError
from voidbox_lab.gateway import Keys, Limits

pytestmark = pytest.mark.anyio

MESSAGE = {"model": "whatever", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "hello"}],
    "usage": {
        "input_tokens": 10,
        "output_tokens": 3,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 7,
    },
}


async def _answer(_: Seen, reply: Replier) -> None:
    await reply.json(ANSWER, request_id="req_1", anthropic_organization_id="org-secret", set_cookie="a=b")


async def test_the_token_is_swapped_for_the_key_and_the_model_is_the_stages(lab: Bench) -> None:
    """The upstream sees the real key and the declared model, and nothing that identifies the guest."""
    lab.provider.handler = _answer
    token = lab.register("anthropic:claude-sonnet-4-5")
    identifying = {
        "x-claude-code-session-id": "s",
        "user-agent": "claude-cli",
        "cookie": "c=d",
        "x-forwarded-for": "1",
    }
    async with lab.client(token) as client:
        r = await client.post(
            "/v1/messages?beta=true", json=MESSAGE, headers={**identifying, "anthropic-beta": "b1"}
        )
    assert r.status_code == 200
    assert r.json() == ANSWER
    assert r.headers["request-id"] == "req_1"
    assert "anthropic-organization-id" not in r.headers
    assert "set-cookie" not in r.headers
    seen = lab.provider.seen[0]
    assert seen.path == "/v1/messages"
    assert seen.body["model"] == "claude-sonnet-4-5"
    assert seen.headers["x-api-key"] == KEY
    assert seen.headers["anthropic-beta"] == "b1"
    assert token not in json.dumps(seen.headers)
    assert not set(identifying) & (set(seen.headers) - {"user-agent"})
    assert seen.headers["user-agent"].startswith("voidbox-lab/")
    session, call = lab.calls[0]
    assert (session.run, session.stage) == ("run-1", "analyst")
    assert (call.status, call.source, call.model) == (200, "live", "claude-sonnet-4-5")
    assert call.tokens.model_dump() == {"input": 10, "output": 3, "cache_read": 100, "cache_write": 7}
    # 3 $/M input, 15 output, 0.30 cache read, 3.75 cache write: list prices of Claude Sonnet 4.5.
    assert call.cost_usd == pytest.approx((10 * 3 + 3 * 15 + 100 * 0.3 + 7 * 3.75) / 1e6)


async def test_a_bearer_token_and_an_openai_key(lab: Bench) -> None:
    """OpenAI clients show the token, and get the key, as a bearer token."""

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.json({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})

    lab.provider.handler = answer
    token = lab.register("openai:gpt-5")
    async with httpx.AsyncClient(base_url=lab.url, trust_env=False) as client:
        r = await client.post(
            "/v1/chat/completions", json={"messages": []}, headers={"authorization": f"Bearer {token}"}
        )
    assert r.status_code == 200
    assert lab.provider.seen[0].path == "/v1/chat/completions"
    assert lab.provider.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert lab.call.tokens.input == 5


async def test_streams_pass_unbuffered(lab: Bench) -> None:
    """An event reaches the client while the next one has not been sent."""
    got_first = anyio.Event()

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.start()
        await reply.chunk({"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}})
        with anyio.fail_after(20):
            await got_first.wait()
        await reply.chunk({"type": "message_delta", "usage": {"output_tokens": 42}})
        await reply.chunk({"type": "message_stop"}, last=True)

    lab.provider.handler = answer
    async with (
        lab.client(lab.register("anthropic:claude-sonnet-4-5")) as client,
        client.stream("POST", "/v1/messages", json={**MESSAGE, "stream": True}) as r,
    ):
        assert r.headers["content-type"] == "text/event-stream"
        pieces = r.aiter_raw()
        first = await anext(pieces)
        assert b"message_start" in first
        got_first.set()
        rest = b"".join([p async for p in pieces])
    assert b"message_stop" in rest
    call = await lab.reported()
    assert (call.tokens.input, call.tokens.output) == (9, 42)
    assert call.first_byte_s is not None
    assert call.first_byte_s < call.duration_s


async def test_a_client_that_hangs_up_closes_the_upstream_at_once(lab: Bench) -> None:
    """Nobody pays for an answer that nobody reads."""
    closed = anyio.Event()

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.start()
        await reply.chunk({"type": "ping"})
        await reply.hung_up()
        closed.set()

    lab.provider.handler = answer
    async with (
        lab.client(lab.register("anthropic:m")) as client,
        client.stream("POST", "/v1/messages", json={**MESSAGE, "stream": True}) as r,
    ):
        await anext(r.aiter_raw())
    with anyio.fail_after(20):
        await closed.wait()
    assert (await lab.reported()).cost_usd is None


async def test_hanging_up_before_the_first_byte(lab: Bench) -> None:
    """The same while the upstream is still thinking; the call broke before it had a status."""
    asked, closed = anyio.Event(), anyio.Event()

    async def answer(_: Seen, reply: Replier) -> None:
        asked.set()
        await reply.hung_up()
        closed.set()

    lab.provider.handler = answer
    async with lab.client(lab.register("anthropic:m")) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.post("/v1/messages", json=MESSAGE))
        await asked.wait()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(20):
        await closed.wait()
    assert (await lab.reported()).status == 0


@pytest.mark.parametrize("streams", [True, False])
async def test_revoking_ends_calls_in_flight_and_bars_new_ones(lab: Bench, streams: bool) -> None:
    """A stage that is over has no model any more."""
    asked, closed = anyio.Event(), anyio.Event()

    async def answer(_: Seen, reply: Replier) -> None:
        if streams:
            await reply.start()
            await reply.chunk({"type": "ping"})
        asked.set()
        await reply.hung_up()
        closed.set()

    lab.provider.handler = answer
    token = lab.register("anthropic:m")
    responses: list[httpx.Response] = []

    async def ask(client: httpx.AsyncClient) -> None:
        responses.append(await client.post("/v1/messages", json={**MESSAGE, "stream": streams}))

    async with lab.client(token) as client:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, client)
                await asked.wait()
                await anyio.sleep(0.05)
                lab.gateway.revoke(token)
            await closed.wait()
        assert "stage has ended" in responses[0].text
        assert responses[0].status_code == (200 if streams else 401)
        again = await client.post("/v1/messages", json=MESSAGE)
    assert again.status_code == 401
    assert again.json()["error"]["type"] == "authentication_error"
    assert len(lab.provider.seen) == 1


@pytest.mark.parametrize(
    ("path", "get"),
    [
        ("/v1/messages", lambda e: (e["type"], e["error"]["type"])),
        ("/v1/chat/completions", lambda e: ("error", e["error"]["code"])),
        ("/api/chat", lambda e: ("error", e["error"])),
    ],
)
async def test_a_wrong_token_is_refused_in_the_callers_shape(lab: Bench, path: str, get: Any) -> None:
    """Each API's own error object."""
    lab.register("scripted:echo")
    async with lab.client("wrong") as client:
        r = await client.post(path, json=MESSAGE)
    assert r.status_code == 401
    kind, detail = get(r.json())
    assert kind == "error"
    assert detail in {"authentication_error", "invalid_api_key"} or "token" in detail
    assert lab.calls == []


async def test_only_model_routes_exist(lab: Bench) -> None:
    """Everything else is refused readably, also what the upstream would have."""
    async with lab.client(lab.register("anthropic:m")) as client:
        for method, path in [
            ("GET", "/v1/files"),
            ("POST", "/v1/messages/batches"),
            ("GET", "/"),
            ("POST", "/v1/models"),
        ]:
            r = await client.request(method, path)
            assert r.status_code == 404
            assert path in r.json()["error"]["message"]
        wrong_api = await client.post("/v1/chat/completions", json={"messages": []})
    assert wrong_api.status_code == 404
    assert "speaks messages" in wrong_api.json()["error"]["message"]
    assert lab.provider.seen == []


async def test_a_client_sees_only_the_stages_model(lab: Bench) -> None:
    """The lists of models are answered by the gateway itself."""
    async with lab.client(lab.register("ollama:qwen3")) as client:
        openai = (await client.get("/v1/models")).json()
        anthropic = (await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()
        ollama = (await client.get("/api/tags")).json()
    assert [m["id"] for m in openai["data"]] == ["qwen3"]
    assert anthropic["data"][0]["type"] == "model"
    assert [m["name"] for m in ollama["models"]] == ["qwen3"]


async def test_upstream_errors_pass_with_their_status(lab: Bench) -> None:
    """Status, shape and retry-after are the provider's; the key in it is not."""

    async def answer(_: Seen, reply: Replier) -> None:
        error = {"type": "error", "error": {"type": "overloaded_error", "message": f"Overloaded, {KEY}"}}
        await reply.json(error, 529, retry_after="3")

    lab.provider.handler = answer
    token = lab.register("anthropic:m")
    async with lab.client(token) as client:
        r = await client.post("/v1/messages", json=MESSAGE)
    assert r.status_code == 529
    assert r.headers["retry-after"] == "3"
    assert r.json()["error"]["message"] == "Overloaded, [redacted]"
    assert (lab.call.status, lab.call.cost_usd) == (529, None)
    trouble = lab.gateway.trouble(token)
    assert trouble is not None
    assert trouble.kind == "provider"
    assert "529" in trouble.message
    assert KEY not in trouble.message
    lab.provider.handler = _answer
    async with lab.client(token) as client:
        await client.post("/v1/messages", json=MESSAGE)
    assert lab.gateway.trouble(token) is None


async def test_an_error_page_is_put_into_the_callers_shape(lab: Bench) -> None:
    """A proxy's HTML is no use to an agent."""

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.json(b"<html>bad gateway</html>", 502)

    lab.provider.handler = answer
    async with lab.client(lab.register("anthropic:m")) as client:
        r = await client.post("/v1/messages", json=MESSAGE)
    assert r.status_code == 502
    assert r.json()["error"] == {"type": "api_error", "message": "<html>bad gateway</html>"}


async def test_the_key_never_reaches_the_client_nor_the_log(lab: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Also when an upstream repeats it in a stream, cut in the middle."""

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.start()
        half = len(KEY) // 2
        await reply.chunk(b'data: {"x": "' + KEY[:half].encode())
        await anyio.sleep(0.05)
        await reply.chunk(KEY[half:].encode() + b'"}\n\n', last=True)

    lab.provider.handler = answer
    with caplog.at_level(logging.DEBUG):
        async with lab.client(lab.register("anthropic:m")) as client:
            r = await client.post("/v1/messages", json={**MESSAGE, "stream": True})
    assert r.text == 'data: {"x": "[redacted]"}\n\n'
    assert KEY not in caplog.text
    assert KEY not in repr(lab.keys)
    assert KEY not in repr(lab.calls[0])


async def test_a_missing_key_is_told_to_the_agent_and_to_the_user(lab: Bench) -> None:
    """In the agent's API shape, as trouble of the stage, and beforehand by `check`."""
    token = lab.register("anthropic:claude-sonnet-4-5", Keys())
    async with lab.client(token) as client:
        r = await client.post("/v1/messages", json=MESSAGE)
    assert r.status_code == 401
    assert r.json()["error"]["type"] == "authentication_error"
    assert r.json()["error"]["message"].startswith("No ANTHROPIC_API_KEY")
    trouble = lab.gateway.trouble(token)
    assert trouble is not None
    assert (trouble.kind, trouble.cause) == ("provider", "no-key")
    assert lab.call.status == 401
    with pytest.raises(UserError, match="No ANTHROPIC_API_KEY"):
        lab.gateway.check(lab.calls[0][0].model, Keys())


async def test_a_dead_upstream(lab: Bench) -> None:
    """Nothing listens there: 502, with the place in the message."""
    token = lab.register("anthropic:m@http://127.0.0.1:9")
    async with lab.client(token) as client:
        r = await client.post("/v1/messages", json=MESSAGE)
    assert r.status_code == 502
    assert "127.0.0.1:9 cannot be reached" in r.json()["error"]["message"]


async def test_a_stream_that_breaks_off_ends_with_an_error_event(lab: Bench) -> None:
    """The agent can tell a broken answer from a whole one."""

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.start(content_length="1000")
        await reply.chunk({"type": "ping"})
        raise ConnectionAbortedError

    lab.provider.handler = answer
    async with lab.client(lab.register("anthropic:m")) as client:
        r = await client.post("/v1/messages", json={**MESSAGE, "stream": True})
    assert r.status_code == 200
    assert "event: error" in r.text
    assert "broke off" in r.text


@pytest.mark.parametrize(("first_byte_s", "idle_s", "status"), [(0.1, 5, 504), (5, 0.1, 200)])
async def test_every_wait_is_bounded(first_byte_s: float, idle_s: float, status: int) -> None:
    """An upstream that says nothing, at once or later, is given up within its bound."""

    async def answer(_: Seen, reply: Replier) -> None:
        if status == 200:
            await reply.start()
            await reply.chunk({"type": "ping"})
        await reply.hung_up()

    async with bench(Limits(first_byte_s=first_byte_s, idle_s=idle_s)) as lab:
        lab.provider.handler = answer
        begun = time.monotonic()
        async with lab.client(lab.register("anthropic:m")) as client:
            r = await client.post("/v1/messages", json={**MESSAGE, "stream": True})
        assert time.monotonic() - begun < 4.5
        assert r.status_code == status
        assert "0.1 s" in r.text


async def test_request_bounds() -> None:
    """Too large, no JSON, not an object, compressed, absurdly nested: refused, nothing carried."""
    async with bench(Limits(request_bytes=100_000)) as lab:
        async with lab.client(lab.register("anthropic:m")) as client:

            async def ask(data: bytes, **headers: str) -> httpx.Response:
                return await client.post("/v1/messages", content=data, headers=headers)

            async def pieces() -> Any:
                for _ in range(20):
                    yield b"x" * 10_000

            assert (await ask(b"x" * 100_001)).status_code == 413
            assert (await client.post("/v1/messages", content=pieces())).status_code == 413
            assert (await ask(b"{")).status_code == 400
            assert (await ask(b"[]")).status_code == 400
            assert (await ask(b"{}", **{"content-encoding": "gzip"})).status_code == 415
            assert (await ask(b"[" * 90_000)).status_code == 400
        assert lab.provider.seen == []


async def test_concurrency_is_bounded_per_stage() -> None:
    """One stage cannot take all connections; another stage is not affected."""
    go = anyio.Event()

    async def answer(_: Seen, reply: Replier) -> None:
        await go.wait()
        await reply.json(ANSWER)

    async with bench(Limits(concurrent=2)) as lab:
        lab.provider.handler = answer
        statuses: list[int] = []

        async def ask(token: str) -> None:
            async with lab.client(token) as client:
                statuses.append((await client.post("/v1/messages", json=MESSAGE)).status_code)

        first, second = lab.register("anthropic:m"), lab.register("anthropic:m", stage="other")
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(ask, first)
                while len(lab.provider.seen) < 2:
                    await anyio.sleep(0.01)
                await ask(first)
                assert statuses == [429]
                tasks.start_soon(ask, second)
                while len(lab.provider.seen) < 3:
                    await anyio.sleep(0.01)
                go.set()
        assert statuses == [429, 200, 200, 200]


async def test_the_bytes_a_stage_has_in_hand_are_bounded() -> None:
    """Many large requests at once cannot fill the host's memory; afterwards the stage may ask again."""
    go = anyio.Event()

    async def answer(_: Seen, reply: Replier) -> None:
        await go.wait()
        await reply.json(ANSWER)

    async with bench(Limits(stage_bytes=1_000_000)) as lab:
        lab.provider.handler = answer
        large = {**MESSAGE, "system": "x" * 600_000}
        async with lab.client(lab.register("anthropic:m")) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.post("/v1/messages", json=large))
            with anyio.fail_after(20):
                while not lab.provider.seen:
                    await anyio.sleep(0.01)
            assert (await client.post("/v1/messages", json=large)).status_code == 429
            go.set()
            await lab.reported()
            assert (await client.post("/v1/messages", json=large)).status_code == 200
        assert lab.provider.seen[0].body["system"] == large["system"]


async def test_a_redirect_is_not_followed(lab: Bench) -> None:
    """A key must not travel to another server."""

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.start(307, "text/plain", location="http://elsewhere.example/")
        await reply.chunk(b"", last=True)

    lab.provider.handler = answer
    async with lab.client(lab.register("anthropic:m")) as client:
        r = await client.post("/v1/messages", json=MESSAGE)
    assert r.status_code == 502
    assert "redirects" in r.json()["error"]["message"]


async def test_tokens_are_counted_by_anthropic_and_estimated_for_others(lab: Bench) -> None:
    """Counting is no model call and not reported as one."""

    async def answer(_: Seen, reply: Replier) -> None:
        await reply.json({"input_tokens": 12})

    lab.provider.handler = answer
    async with lab.client(lab.register("anthropic:m")) as client:
        assert (await client.post("/v1/messages/count_tokens", json=MESSAGE)).json() == {"input_tokens": 12}
    assert lab.provider.seen[0].path == "/v1/messages/count_tokens"
    async with lab.client(lab.register("openai:m")) as client:
        estimate = (await client.post("/v1/messages/count_tokens", json=MESSAGE)).json()["input_tokens"]
    assert 10 < estimate < 100
    assert len(lab.provider.seen) == 1
    assert lab.calls == []


async def test_hosted_tools_are_left_out_and_urls_refused(lab: Bench) -> None:
    """A box without a network gets none through the provider."""
    lab.provider.handler = _answer
    tools = [{"name": "bash", "input_schema": {}}, {"type": "web_search_20250305", "name": "web_search"}]
    image = {"type": "image", "source": {"type": "url", "url": "https://evil.example/?stolen"}}
    async with lab.client(lab.register("anthropic:m")) as client:
        r = await client.post("/v1/messages", json={**MESSAGE, "tools": tools, "mcp_servers": [{"url": "x"}]})
        assert r.status_code == 200
        bad = {**MESSAGE, "messages": [{"role": "user", "content": [image]}]}
        refused = await client.post("/v1/messages", json=bad)
    assert [t["name"] for t in lab.provider.seen[0].body["tools"]] == ["bash"]
    assert "mcp_servers" not in lab.provider.seen[0].body
    assert refused.status_code == 400
    assert "by URL" in refused.json()["error"]["message"]
    assert len(lab.provider.seen) == 1
