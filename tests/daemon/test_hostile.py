"""Requests that no client of ours would make: each is answered with a problem document, and the daemon goes on."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from tests.daemon.test_api import spec
from voidbox_lab.daemon.problem import Problem

pytestmark = pytest.mark.anyio

DIGEST = "sha256:" + "a" * 64
HUGE = "9" * 400


async def raw(house: Any, data: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body that the bytes of one request are answered with."""
    async with await anyio.connect_unix(house.settings.socket) as stream:
        await stream.send(data)
        answer = b""
        with anyio.fail_after(10):
            try:
                while True:
                    answer += await stream.receive()
            except anyio.EndOfStream:
                pass
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(b":") for line in lines)}
    return int(first.split()[1]), headers, body


def request(
    method: str, target: bytes, body: bytes = b"", *headers: bytes, kind: bytes = b"application/json"
) -> bytes:
    head = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: x", b"Connection: close", *headers]
    if body:
        head += [b"Content-Type: " + kind, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


GETS = [
    (b"/v1/runs/%00", 404),
    (b"/v1/runs/a%00b/events", 404),
    (b"/v1/runs/..%2f..%2fetc%2fpasswd", 404),
    (b"/v1/runs/../../../etc/passwd", 404),
    (b"/v1/runs/%2e%2e/%2e%2e", 404),
    (b"/v1/runs/%ff%fe", 404),
    (b"/v1/runs/%ed%a0%80", 404),
    (b"/v1/runs/" + b"x" * 5000, 404),
    (b"/v1/runs/'%20OR%201=1--", 404),
    (b"/v1/runs/", 404),
    (b"//v1/runs", 404),
    (b"/v1/runs?limit=0", 422),
    (b"/v1/runs?limit=-1", 422),
    (b"/v1/runs?limit=" + HUGE.encode(), 422),
    (b"/v1/runs?limit=1e3", 422),
    (b"/v1/runs?limit=NaN", 422),
    (b"/v1/runs?limit=%00", 422),
    (b"/v1/runs?limit=%ff", 422),
    (b"/v1/runs/known/events?after=9223372036854775808", 422),
    (b"/v1/runs/known/events?after=" + HUGE.encode(), 422),
    (b"/v1/runs/known/events?after=-1", 422),
    (b"/v1/artifacts/" + DIGEST.encode(), 404),
    (b"/v1/artifacts/" + DIGEST.encode().upper(), 422),
    (b"/v1/artifacts/" + DIGEST.encode() + b"%0a", 422),
    (b"/v1/artifacts/sha256:" + b"..%2f" * 10, 404),
    (b"/v1/artifacts/sha256:" + b"%2e" * 64, 422),
    (b"/v1/artifacts/md5:" + b"a" * 64, 422),
    (b"/v1/artifacts/%00", 422),
]


async def test_targets(house: Any) -> None:
    run = (await house.client.submit(spec("one"))).id
    for target, status in GETS:
        got, headers, body = await raw(house, request("GET", target.replace(b"known", run.encode())))
        assert got == status, (target, body)
        assert headers[b"content-type"] == b"application/problem+json", target
        assert Problem.model_validate_json(body).status == status
        assert len(body) < 6000
    assert (await house.client.health()).runs == 0


BODIES = [
    (b"\xff\xfe{}", 422),
    (b'{"argv": ["\xff"]}', 400),
    (b"{", 422),
    (b"", 415),
    (b"[" * 100_000, 400),
    (b'{"argv": ["x"], "memory_mb": ' + b"9" * 5000 + b"}", 400),
    (b'{"argv": ["x"], "memory_mb": 1e400}', 422),
    (b'{"argv": ["x"], "timeout_s": NaN}', 422),
    (b'{"argv": ["x"], "timeout_s": Infinity}', 422),
    (b'{"argv": ["\\ud800"]}', 422),
    (b'{"\\ud800": 1}', 422),
    (b'{"' + b"x" * 100_000 + b'": 1}', 422),
    (b'{"argv": "x"}', 422),
    (b"null", 422),
    (b'"x"', 422),
]


async def test_bodies(house: Any) -> None:
    for body, status in BODIES:
        got, headers, answer = await raw(house, request("POST", b"/v1/exec", body))
        assert got == status, (body[:80], answer[:300])
        assert headers[b"content-type"] == b"application/problem+json"
        assert Problem.model_validate_json(answer).status == status
        assert len(answer) < 6000
    assert house.backend.opened == 0


async def test_bodies_of_another_kind(house: Any) -> None:
    for kind in (
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data",
        b"application/jsonx",
    ):
        got, _, answer = await raw(house, request("POST", b"/v1/exec", b'{"argv": ["x"]}', kind=kind))
        assert (got, Problem.model_validate_json(answer).status) == (415, 415), kind
    got, _, _ = await raw(
        house, request("POST", b"/v1/exec", b'{"argv": ["exit-0"]}', kind=b"application/JSON; x=y")
    )
    assert got == 200


@pytest.mark.parametrize(
    "value", [b"x", b"-1", b"1.5", b"", b"1 2", b"\xff", b"0x1", b"9223372036854775808", HUGE.encode(), b"1\x00"]
)
async def test_a_last_event_id_that_is_none(house: Any, value: bytes) -> None:
    run = (await house.client.submit(spec("one"))).id
    target = f"/v1/runs/{run}/events".encode()
    got, headers, body = await raw(house, request("GET", target, b"", b"Last-Event-ID: " + value))
    # NUL is no header at all: the HTTP parser itself refuses it.
    assert got == (400 if b"\x00" in value else 422)
    if got == 422:
        assert headers[b"content-type"] == b"application/problem+json"
        assert "last-event-id" in Problem.model_validate_json(body).detail.lower()


async def test_headers_twice(house: Any) -> None:
    run = (await house.client.submit(spec("one"))).id
    events = [e async for e in house.client.events(run)]
    target, last = f"/v1/runs/{run}/events".encode(), b"Last-Event-ID: %d" % (len(events) - 1)
    got, _, body = await raw(house, request("GET", target, b"", last, last))
    assert (got, body.count(b"\nid: ") + body.startswith(b"id: ")) == (200, 1)
    for twice in (b"Host: y", b"Content-Length: 3"):
        got, _, _ = await raw(house, request("POST", b"/v1/gc", b"xx", twice))
        assert got == 400
    smuggled = request("POST", b"/v1/gc", b"0\r\n\r\n", b"Transfer-Encoding: chunked")
    swept = house.backend.swept
    assert (await raw(house, smuggled))[0] in {200, 400}
    assert house.backend.swept <= swept + 1


async def test_methods_and_ranges(house: Any) -> None:
    digest = (await house.client.upload(b"0123456789")).digest
    http = house.client._open
    for method, path, status in [
        ("DELETE", "/v1/runs", 405),
        ("TRACE", "/v1/health", 405),
        ("OPTIONS", "/v1/exec", 405),
        ("HEAD", "/v1/runs", 405),
        ("X" * 50, "/v1/runs", 405),
    ]:
        response = await http.request(method, path)
        assert response.status_code == status
        assert set(response.headers["allow"].split(", ")) <= {"GET", "POST", "HEAD"}
        assert response.headers["content-type"] == "application/problem+json"
    assert (await http.request("DELETE", "/v1/runs")).headers["allow"] == "GET, POST"
    for value, status in [("bytes=2-4", 206), ("bytes=99-", 416), ("bytes=x", 400), ("bytes=4-2", 400)]:
        response = await http.get(f"/v1/artifacts/{digest}", headers={"Range": value})
        assert response.status_code == status, value
        if status == 206:
            assert response.content == b"234"
        else:
            assert Problem.model_validate_json(response.content).status == status


async def test_what_is_no_http(house: Any) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: x\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000,
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ):
        assert (await raw(house, data))[0] == 400
    assert (await house.client.health()).boxes == 0
