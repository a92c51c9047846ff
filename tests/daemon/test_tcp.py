"""The daemon on TCP: nothing without the token, nothing by another name, and clients that use it from afar."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread

from tests.daemon.test_api import spec
from voidbox_lab.client import AsyncClient, Client
from voidbox_lab.client.way import way
from voidbox_lab.daemon import app, ratelimit, tcp, token
from voidbox_lab.daemon.problem import Problem
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.settings import Address, Settings, read_token

pytestmark = pytest.mark.anyio

PATHS = [*app.document()["paths"], "/v1/openapi.json", "/", "/nothing", "/v1/../v1/health"]


def http(far: Any, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=far.url, headers=headers, trust_env=False)


async def test_nothing_without_the_token(far: Any) -> None:
    async with http(far) as client:
        for path in PATHS:
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
                response = await client.request(method, path)
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"].startswith("Bearer")
                assert Problem.model_validate_json(response.content).error.cause == "token"
                assert "access-control-allow-origin" not in response.headers


WRONG = [
    "",
    "Bearer",
    "Basic {}",
    "{}",
    "Bearer {}x",
    "Bearer {} x",
    "Bearer  x{}",
    "bearer\t{}",
    "Token {}",
    "Bearer é",
]


async def test_a_header_that_is_not_the_token(far: Any) -> None:
    right = (b"Authorization", f"Bearer {far.token}".encode())
    async with http(far) as client:
        for header in WRONG:
            wrong = (b"Authorization", header.format(far.token).encode("latin-1"))
            for headers in ([wrong], [wrong, right], [right, wrong]):
                assert (await client.get("/v1/health", headers=headers)).status_code == 401, headers
        assert (await client.get("/v1/health", headers=[right])).status_code == 200
        assert (await client.get(f"/v1/health?token={far.token}")).status_code == 401


OURS = ["127.0.0.1", "127.0.0.1:1", "localhost:8000", "LOCALHOST", "[::1]:80", "192.0.2.7:80"]
OTHERS = [
    "evil.example",
    "evil.example:80",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example@127.0.0.1",
    "127.0.0.1:80:evil",
    "[::1]evil.example",
    "[evil.example]",
    "localhost:",
    ":80",
    "127.0.0.1,evil.example",
    "1",
    "0x7f.1",
]


async def test_a_name_that_was_pointed_here(far: Any) -> None:
    """DNS rebinding: the browser sends the name in its address bar."""
    async with http(far, Authorization=f"Bearer {far.token}") as client:
        for host in OURS:
            assert (await client.get("/v1/health", headers={"Host": host})).status_code == 200, host
        for host in [*OTHERS, ""]:
            response = await client.get("/v1/health", headers={"Host": host})
            assert response.status_code == 421, host
            assert Problem.model_validate_json(response.content).error.cause == "host"


@pytest.mark.parametrize("extension", [True, False])
@pytest.mark.parametrize("authorized", [True, False])
async def test_websockets_need_the_token(extension: bool, authorized: bool) -> None:
    """There is none yet; the guard stands before any."""
    reached, sent = [], []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    headers = [(b"host", b"localhost"), *([(b"authorization", b"Bearer " + b"t" * 43)] if authorized else [])]
    scope = {"type": "websocket", "path": "/", "headers": headers, "client": ("127.0.0.1", 1)}
    if extension:
        scope["extensions"] = {"websocket.http.response": {}}
    limited = ratelimit.Limited(inner, ratelimit.TCP)
    await tcp.Guarded(limited, "t" * 43, "127.0.0.1")(scope, receive, send)
    if authorized:
        assert (reached, sent) == (["websocket"], [])
    elif extension:
        assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 401)
    else:
        assert [m["type"] for m in sent] == ["websocket.close"]
    assert bool(reached) is authorized


async def test_a_whole_run_from_afar(far: Any) -> None:
    async with AsyncClient(far.remote, env={}) as client:
        kept = await client.upload(b"input")
        assert await client.download(kept.digest) == b"input"
        record = await client.submit(spec("one"))
        events = [e async for e in client.events(record.id)]
        assert (await client.run(record.id)).result == "one done"
        assert (await client.health()).pid == os.getpid()

    def blocking() -> list[Any]:
        with Client(far.remote, env={}) as client:
            return list(client.events(record.id))

    assert await to_thread.run_sync(blocking) == events


async def test_clients_say_what_is_wrong(far: Any) -> None:
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"token": "x" * 43}, UserError, "wants its token"),
        ({"token": None}, UserError, "set VOIDBOX_TOKEN"),
        ({"token": "short"}, UserError, "VOIDBOX_TOKEN holds no token"),
        ({"token": None, "token_from": Path("/nonexistent")}, UserError, "no token file /nonexistent"),
        ({"daemon": nobody}, ProviderError, "No daemon answers"),
    ]
    for change, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            async with AsyncClient(replace(far.remote, **change)):
                pass
        assert far.token not in str(caught.value)
    free.close()


async def test_the_token_goes_nowhere_else(far: Any) -> None:
    """Not after a redirect, not to a proxy of the environment, not by default from this user's own file."""
    asked: list[bytes] = []

    async def redirects(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            asked.append(await stream.receive())
            where = f"Location: {far.url}/v1/health\r\nContent-Length: 0"
            await stream.send(f"HTTP/1.1 302 Found\r\n{where}\r\n\r\n".encode())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, redirects)
        other = replace(far.remote, daemon=f"http://127.0.0.1:{port}", token="y" * 43)
        with pytest.raises(ProviderError, match="302"):
            async with AsyncClient(other, env={}):
                pass
        assert len(asked) == 1
        tasks.cancel_scope.cancel()
    await listener.aclose()
    with pytest.raises(UserError, match="VOIDBOX_TOKEN"):
        way(replace(far.remote, token=None))
    assert far.token not in repr(far.remote) + repr(way(far.remote))


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("http://192.0.2.1:8", False),
        ("http://127.0.0.1:8", True),
        ("http://[::1]:8", True),
        ("https://a.example", True),
    ],
)
def test_model_keys_are_not_sent_in_the_clear(settings: Settings, url: str, private: bool) -> None:
    assert way(replace(settings, daemon=url, token="x" * 43)).is_private is private


async def test_a_warning_beyond_loopback(far: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)):
        caplog.clear()
        with tcp.bound(Address(host, 0)) as sock:
            async with tcp.serving_tcp(far.api, sock, host, far.token) as url:
                assert ("without TLS" in caplog.text) is warned
                assert url in caplog.text
        assert far.token not in caplog.text
    taken = Address.parse(far.url.removeprefix("http://"))
    with pytest.raises(UserError, match=f"cannot listen on {taken}"):
        tcp.bound(taken)
    with pytest.raises(UserError, match=r"cannot listen on nowhere\.invalid:1"):
        tcp.bound(Address("nowhere.invalid", 1))


def test_the_token_file(settings: Settings) -> None:
    made = token.token(settings)
    path = settings.token_file
    assert path.stat().st_mode & 0o777 == 0o600
    assert token.token(settings) == made
    assert [p.name for p in settings.data.iterdir()] == ["token"]
    assert token.matches(f"Bearer {made}".encode(), made)
    path.chmod(0o640)
    with pytest.raises(UserError, match="mode 0600") as caught:
        token.token(settings)
    assert made not in str(caught.value)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(UserError, match="holds no token"):
        token.token(settings)
    path.unlink()
    path.symlink_to(settings.data / "elsewhere")
    with pytest.raises(UserError, match="cannot be read"):
        token.token(settings)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(UserError, match="not a file"):
        read_token(path)
    path.unlink()
    assert token.token(settings) != made


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1:", "127.0.0.1:65536", "a b:1", "::1:80", "[::1]", "h:1:2"])
def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match=r"VOIDBOX_TCP=.* is not HOST:PORT"):
        Address.parse(text)


def test_addresses() -> None:
    assert Address.parse("0") == Address("127.0.0.1", 0)
    assert str(Address.parse("[::1]:80")) == "[::1]:80"
    assert Address.parse("box.example:80") == Address("box.example", 80)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:80", "ftp://h:1", "http://u:p@h:1", "http://h:1/x", "http://h:1?x", "http://", "http://h:99999"],
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="VOIDBOX_DAEMON is not") as caught:
        Settings.from_env({"VOIDBOX_DAEMON": url})
    assert "u:p" not in str(caught.value)
