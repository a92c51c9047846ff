"""What a hostile agent may try on a served gateway: memory, connections, headers, ways out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio
import pytest

from tests.gateway.test_carry import ANSWER, MESSAGE
from tests.gateway.upstream_server import Bench, Replier, Seen, bench
from voidbox_lab.gateway import Limits, serve

pytestmark = pytest.mark.anyio


async def _answer(_: Seen, reply: Replier) -> None:
    await reply.json(ANSWER)


async def test_the_values_a_stage_has_in_hand_are_bounded() -> None:
    """Tiny values take far more memory than their JSON; one request alone, and all of a stage together."""
    go = anyio.Event()

    async def answer(_: Seen, reply: Replier) -> None:
        await go.wait()
        await reply.json(ANSWER)

    async with bench(Limits(stage_values=1000)) as lab:
        lab.provider.handler = answer
        many = {**MESSAGE, "metadata": [{}] * 300}
        async with lab.client(lab.register("anthropic:m")) as client, anyio.create_task_group() as tasks:
            assert (await client.post("/v1/messages", json={"metadata": [{}] * 600})).status_code == 413
            tasks.start_soon(lambda: client.post("/v1/messages", json=many))
            with anyio.fail_after(20):
                while not lab.provider.seen:
                    await anyio.sleep(0.01)
            assert (await client.post("/v1/messages", json=many)).status_code == 429
            go.set()
            await lab.reported()
            assert (await client.post("/v1/messages", json=many)).status_code == 200


async def _talk(lab: Bench, data: bytes) -> bytes:
    """What the gateway answers to `data` until it hangs up."""
    async with await anyio.connect_tcp("127.0.0.1", int(lab.url.rpartition(":")[2])) as stream:
        await stream.send(data)
        said = b""
        with anyio.fail_after(20), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                said += await stream.receive()
        return said


@pytest.mark.parametrize(
    "begin",
    [b"", b"POST /v1/messages HTTP/1.1\r\nx: ", b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\nGET /"],
    ids=["silent", "slow", "slow-second"],
)
async def test_headers_that_never_end_do_not_hold_a_connection(
    lab: Bench, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    """However slowly they come: each byte buys no more time."""
    monkeypatch.setattr(serve, "HEAD_S", 0.5)
    async with await anyio.connect_tcp("127.0.0.1", int(lab.url.rpartition(":")[2])) as stream:
        await stream.send(begin)
        with anyio.fail_after(10), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                with anyio.move_on_after(0.1):
                    await stream.receive()
                if begin:
                    await stream.send(b"x")


async def test_headers_are_bounded(lab: Bench) -> None:
    """16 KiB or so."""
    said = await _talk(lab, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000)
    assert said.startswith(b"HTTP/1.1 400") or not said  # it may hang up before we have read


async def test_odd_requests_are_refused_and_leave_no_trace(lab: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Smuggling, upgrades, hosts that are none: one answer, then the end; a guest cannot write the host's log."""
    token = lab.register("anthropic:m").encode()
    head = b"POST /v1/messages HTTP/1.1\r\nx-api-key: " + token + b"\r\n"
    for odd in (
        b"content-length: 2\r\ntransfer-encoding: gzip, chunked\r\nhost: x\r\n\r\n0\r\n\r\nGET /",
        b"content-length: 2\r\ncontent-length: 3\r\nhost: x\r\n\r\n{}",
        b"content-length: +2\r\nhost: x\r\n\r\n{}",
        b"anthropic-beta: a\rx-api-key: b\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
        b"\x00\x00\r\n\r\n",
    ):
        said = await _talk(lab, head + odd)
        assert said.startswith(b"HTTP/1.1 400"), odd
        assert said.count(b"HTTP/1.1 ") == 1, odd
    last = b"connection: close\r\n\r\n"
    upgrade = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n" + last
    assert (await _talk(lab, upgrade)).startswith(b"HTTP/1.1 401")
    assert (await _talk(lab, b"GET /v1/models HTTP/1.1\r\nhost: [\r\n" + last)).startswith(b"HTTP/1.1 401")
    known = b"GET /v1/nothing HTTP/1.1\r\nx-api-key: " + token + b"\r\nhost: [/\r\n"
    assert (await _talk(lab, known + last)).startswith(b"HTTP/1.1 404")
    assert lab.provider.seen == []
    assert not [r for r in caplog.records if r.name.startswith("uvicorn")]


async def test_a_header_beyond_ascii_stays_behind(lab: Bench) -> None:
    """It is the agent's own fault and must not look like the gateway's."""
    lab.provider.handler = _answer
    token = lab.register("anthropic:m")
    async with lab.client(token) as client:
        r = await client.post("/v1/messages", json=MESSAGE, headers=[(b"anthropic-beta", b"caf\xe9")])
    assert r.status_code == 200
    assert "anthropic-beta" not in lab.provider.seen[0].headers
    assert lab.gateway.trouble(token) is None


URL = "https://evil.example/?stolen"
_IMAGE = {"type": "image", "source": {"type": "url", "url": URL}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": [{"content": [{"type": "document", "source": {"content": [_IMAGE]}}]}]}),
        ("/v1/messages", {"messages": [{"content": [{"type": "tool_result", "content": [_IMAGE]}]}]}),
        ("/v1/chat/completions", {"messages": [{"content": [{"image_url": {"url": URL}}]}]}),
        ("/v1/chat/completions", {"messages": [{"content": [{"type": "video_url", "video_url": {"url": URL}}]}]}),
        ("/v1/chat/completions", {"messages": [{"content": [{"type": "audio_url", "audio_url": {"url": URL}}]}]}),
        ("/v1/chat/completions", {"messages": [{"content": [{"image_url": "file:///etc/passwd"}]}]}),
        ("/v1/responses", {"messages": [], "input": [{"content": [{"type": "input_image", "image_url": URL}]}]}),
        (
            "/v1/responses",
            {
                "input": [
                    {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": URL}}
                ]
            },
        ),
    ],
)
async def test_no_content_by_url_wherever_it_hides(lab: Bench, path: str, body: dict[str, Any]) -> None:
    """Servers read parts without a type, and other types than the well-known ones."""
    lab.provider.handler = _answer
    model = "anthropic:m" if path == "/v1/messages" else "openai:m"
    async with lab.client(lab.register(model)) as client:
        r = await client.post(path, json=body)
    assert r.status_code == 400
    assert "by URL" in r.json()["error"]["message"]
    assert lab.provider.seen == []


async def test_a_router_is_not_asked_for_other_models(lab: Bench) -> None:
    """The stage's declaration stays the only choice of model, and its server's own search is a way out."""
    lab.provider.handler = _answer
    extra = {"models": ["other"], "route": "fallback", "plugins": [{"id": "web"}], "search_parameters": {}}
    async with lab.client(lab.register("openai:m")) as client:
        await client.post("/v1/chat/completions", json={"messages": [], "model": "other", **extra})
    assert lab.provider.seen[0].body == {"messages": [], "model": "m"}
