"""What a listener takes at most: rate, requests and streams at once, heads, and how slowly a body may come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest

from tests.daemon.test_api import spec
from voidbox_lab.daemon import activity, app, ratelimit
from voidbox_lab.daemon.problem import Problem
from voidbox_lab.daemon.ratelimit import Buckets, Limited, Limits
from voidbox_lab.errors import LimitExceeded, from_dict
from voidbox_lab.gateway.serve import serving_unix

pytestmark = pytest.mark.anyio

LIMITS = Limits(rate=1e6, burst=1000, requests=6, streams=2)


async def connect(stack: AsyncExitStack, house: Any, limits: Limits) -> httpx.AsyncClient:
    """A client of the house's application behind `limits`."""
    path = house.settings.runtime / "limited.sock"
    await stack.enter_async_context(serving_unix(Limited(app.create(house.daemon), limits), path))
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    return await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://x"))


def refused(response: httpx.Response, limit: str) -> None:
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    problem = Problem.model_validate_json(response.content)
    assert problem.error.limit == limit
    assert isinstance(from_dict(problem.error.model_dump()), LimitExceeded)


async def test_a_rate_per_client(house: Any) -> None:
    async with AsyncExitStack() as stack:
        client = await connect(stack, house, replace(LIMITS, rate=0.1, burst=3))
        answers = [await client.get("/v1/health") for _ in range(5)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    refused(answers[-1], "rate")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 10


def test_buckets() -> None:
    now = 0.0
    buckets = Buckets(2, 4, clock=lambda: now)
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert buckets.take("b") == 0, "another client has its own"
    now = 0.4
    assert buckets.take("a") == pytest.approx(0.1)
    now = 0.5
    assert buckets.take("a") == 0
    now = 1000
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5], "no more than the burst is saved up"
    for number in range(ratelimit.MAX_CLIENTS * 2):
        buckets.take(f"c{number}")
    assert len(buckets._levels) == ratelimit.MAX_CLIENTS


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("10.0.0.1", 1), ("10.0.0.1", 2), True),
        (("10.0.0.1", 1), ("10.0.0.2", 1), False),
        (("2001:db8::1", 1), ("2001:db8::2", 1), True),
        (("2001:db8::1", 1), ("2001:db8:0:1::1", 1), False),
        (("::ffff:10.0.0.1", 1), ("::ffff:10.0.0.2", 1), False),
        (None, ("", 0), True),
    ],
)
def test_who_is_one_client(one: Any, other: Any, same: bool) -> None:
    assert (ratelimit._client({"client": one}) == ratelimit._client({"client": other})) is same


async def test_streams_and_requests_at_once(house: Any) -> None:
    record = await house.client.submit(spec("slow"))
    path = f"/v1/runs/{record.id}/events"
    async with AsyncExitStack() as stack:
        client = await connect(stack, house, LIMITS)
        async with client.stream("GET", path) as one, client.stream("GET", path) as two:
            assert (one.status_code, two.status_code) == (200, 200)
            refused(await client.get(path), "streams")
            # No box is opened for a stream that is refused.
            opened = house.backend.opened
            refused(await client.post("/v1/exec", json={"argv": ["x"]}), "streams")
            assert house.backend.opened == opened
            assert (await client.get("/v1/health")).status_code == 200, "other requests go on"
        with anyio.fail_after(5):
            while (await client.get(path, headers={"Last-Event-ID": "-"})).status_code != 422:
                await anyio.sleep(0.02)
            while True:
                async with client.stream("GET", path) as again:
                    if again.status_code == 200:
                        break
                await anyio.sleep(0.02)
    await house.client.cancel(record.id)


async def test_requests_at_once(house: Any) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"x"
        await anyio.sleep(30)

    async with AsyncExitStack() as stack:
        client = await connect(stack, house, LIMITS)
        async with anyio.create_task_group() as tasks:
            for _ in range(LIMITS.requests):
                tasks.start_soon(lambda: client.put("/v1/artifacts", content=slowly()))
            with anyio.fail_after(5):
                while (response := await client.get("/v1/health")).status_code == 200:
                    await anyio.sleep(0.02)
            refused(response, "requests")
            tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            while (await client.get("/v1/health")).status_code != 200:
                await anyio.sleep(0.02)


async def test_a_long_head(house: Any) -> None:
    http = house.client._open
    response = await http.get("/v1/health", headers={"X-Much": "x" * 9000})
    assert response.status_code == 431
    Problem.model_validate_json(response.content)
    assert (await http.get("/v1/runs/" + "x" * 9000)).status_code == 431
    assert (await http.get("/v1/health", headers={"X-Much": "x" * 7000})).status_code == 200


async def test_a_body_that_does_not_come(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "CHUNK_S", 0.3)
    for head in ("POST /v1/runs HTTP/1.1\r\nContent-Type: application/json", "PUT /v1/artifacts HTTP/1.1"):
        async with await anyio.connect_unix(house.settings.socket) as stream:
            await stream.send(f"{head}\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
            with anyio.fail_after(5):
                answer = await stream.receive()
        assert answer.startswith(b"HTTP/1.1 408 "), head
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["limit"] == "time"
    assert [*(house.settings.data / "artifacts" / "tmp").iterdir()] == []


async def test_a_body_that_drips(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "BODY_S", 0.5)

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" "
            await anyio.sleep(0.05)

    with anyio.fail_after(4):
        try:
            response = await house.client._open.post(
                "/v1/runs", content=drip(), headers={"Content-Type": "application/json"}
            )
        except httpx.TransportError:
            return  # it was still writing when the connection was closed
    assert response.status_code == 408


async def test_a_notebook_never_meets_the_limit(house: Any) -> None:
    """A busy cell: 500 requests as fast as they go."""
    for _ in range(500):
        await house.client.health()
