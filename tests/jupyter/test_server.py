"""The server extension between a browser and a daemon: who may ask, and what is passed on."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from tests.daemon.test_api import spec
from tests.jupyter.conftest import problem
from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.gateway.serve import serving_unix
from voidbox_lab.jupyter import upstream
from voidbox_lab.jupyter.handlers import ROUTES
from voidbox_lab.jupyter.upstream import Upstream
from voidbox_lab.settings import Settings
from voidbox_lab.spec.overview import Overview

pytestmark = pytest.mark.anyio
RUN = "run-0123456789ab"
API = "voidbox/api"


def samples(path: str) -> list[str]:
    """Addresses that a handler's pattern matches."""
    made = path.lstrip("/").replace("(run-[0-9a-f]{12})", RUN)
    choice = re.search(r"\(([a-z|]+)\)", made)
    return [made.replace(choice[0], word) for word in choice[1].split("|")] if choice else [made]


async def test_no_handler_answers_without_the_token(jupyter: Any, house: Any) -> None:
    """Every path, by every method that it has; none is of a method of ours that this test does not know."""
    asked = 0
    # Its own pair of XSRF tokens, which anybody can make: it is not for want of them that it is refused.
    made_up = {"Cookie": f"_xsrf={'ab' * 16}", "X-XSRFToken": "ab" * 16}
    async with httpx.AsyncClient(base_url=jupyter.url, headers=made_up, trust_env=False, timeout=30) as stranger:
        for path, handler in ROUTES:
            methods = [m for m in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") if m.lower() in vars(handler)]
            assert methods
            for address in samples(path):
                for method in methods:
                    answer = await stranger.request(method, address)
                    assert answer.status_code == 403, (method, address)
                    wrong = {"Authorization": "token wrong"}
                    assert (await stranger.request(method, address, headers=wrong)).status_code == 403
                    asked += 1
    assert asked == 6
    assert (await jupyter.http.get(f"{API}/overview")).status_code == 200, "with the token they do answer"


async def test_another_sites_page_cannot_cancel(jupyter: Any, house: Any) -> None:
    """A browser's cookie alone is not enough: tornado wants the XSRF token, which other sites cannot read."""
    record = await house.client.submit(spec("slow"))
    async with httpx.AsyncClient(base_url=jupyter.url, trust_env=False, timeout=30) as browser:
        await browser.get("api/status", params={"token": jupyter.token})
        assert (await browser.get(f"{API}/runs/{record.id}")).status_code == 200, "logged in by its cookie"
        assert (await browser.post(f"{API}/runs/{record.id}/cancel")).status_code == 403
    assert (await house.client.run(record.id)).state != "cancelled"


async def test_runs_are_seen_paused_resumed_and_cancelled(jupyter: Any, house: Any) -> None:
    http = jupyter.http
    record = await house.client.submit(spec("slow"))
    seen = Overview.model_validate_json((await http.get(f"{API}/overview", params={"since": 0})).content)
    assert [run.id for run in seen.runs] == [record.id]

    async def until(state: str) -> None:
        with anyio.fail_after(20):
            while (await http.get(f"{API}/runs/{record.id}")).json()["state"] != state:
                await anyio.sleep(0.05)

    for action, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        assert (await http.post(f"{API}/runs/{record.id}/{action}")).status_code == 200
        await until(state)


async def test_events_come_as_they_happen_and_resume_by_number(jupyter: Any, house: Any) -> None:
    record = await house.client.submit(spec("slow"))
    seen: list[str] = []
    with anyio.fail_after(30):
        async with jupyter.http.stream("GET", f"{API}/runs/{record.id}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                seen.append(line)
                if "begun" in line:
                    assert (await jupyter.http.post(f"{API}/runs/{record.id}/cancel")).is_success
    numbers = [int(line[3:]) for line in seen if line.startswith("id:")]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert '"cancelled"' in next(line for line in reversed(seen) if line.startswith("data:"))
    last = {"Last-Event-ID": str(numbers[-2])}
    rest = await jupyter.http.get(f"{API}/runs/{record.id}/events", headers=last)
    assert re.findall(r"^id: (\d+)", rest.text, re.MULTILINE) == [str(numbers[-1])]


async def test_errors_are_the_daemons_own(jupyter: Any, house: Any) -> None:
    http = jupyter.http
    for answer in (
        await http.get(f"{API}/runs/{RUN}"),
        await http.get(f"{API}/runs/{RUN}/events"),
        await http.post(f"{API}/runs/{RUN}/cancel"),
    ):
        assert answer.status_code == 404
        assert problem(answer)["cause"] == "unknown-run"
    assert problem(await http.get(f"{API}/overview", params={"since": "x"}))["kind"] == "user"
    # What is not a run's id is no address here, and nothing else of the daemon's can be reached.
    for path in (
        "runs",
        "runs/..%2Fhealth",
        "runs/run-1",
        "health",
        "credentials",
        "shutdown",
        f"runs/{RUN}/forget",
    ):
        for method in ("GET", "POST"):
            assert (await http.request(method, f"{API}/{path}")).status_code == 404, path
    assert (await http.delete(f"{API}/runs/{RUN}")).status_code == 405


async def test_without_a_daemon_it_says_so_and_starts_none(jupyter: Any, settings: Any) -> None:
    for path in ("overview", f"runs/{RUN}", f"runs/{RUN}/events"):
        answer = await jupyter.http.get(f"{API}/{path}")
        assert answer.status_code == 503
        assert problem(answer)["cause"] == "no-daemon"
        assert "voidbox daemon start" in problem(answer)["message"]
    assert not settings.socket.exists()


async def test_wrong_settings_are_told_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOIDBOX_ACCEL", "abacus")
    up = Upstream()
    with pytest.raises(UserError, match="VOIDBOX_ACCEL"):
        await up.ask("GET", "/v1/overview", {})


async def test_a_daemon_that_refuses_this_server_is_no_login(jupyter: Any, far: Any) -> None:
    """Its 401 would have the browser log in again at Jupyter, which is another door."""
    up = Upstream(replace(far.remote, token="x" * 43))
    try:
        answer = await up.ask("GET", "/v1/overview", {})
        assert answer.status == 401
    finally:
        await up.aclose()


async def test_streams_and_answers_are_bounded(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record = await house.client.submit(spec("slow"))
    monkeypatch.setattr(upstream, "MAX_STREAMS", 1)
    monkeypatch.setattr(upstream, "MAX_ANSWER", 10)
    up = Upstream(house.settings)
    path = f"/v1/runs/{record.id}/events"
    try:
        async with up.stream(path, {}, {}) as first:
            assert first.is_success
            with pytest.raises(LimitExceeded, match="being followed"):
                async with up.stream(path, {}, {}):
                    pass
        async with up.stream(path, {}, {}):
            pass
        with pytest.raises(LimitExceeded, match="MiB"):
            await up.ask("GET", "/v1/runs", {})
    finally:
        await up.aclose()


async def test_a_daemon_of_an_earlier_release_is_named(jupyter: Any, settings: Settings) -> None:
    async with serving_unix(Starlette(), settings.socket):
        answer = await jupyter.http.get(f"{API}/overview")
    assert answer.status_code == 503
    assert problem(answer)["cause"] == "version"
    assert "voidbox daemon stop" in problem(answer)["message"]
