"""The report of `voidbox doctor` when a box boots and then does not do what it should."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from tests.engine.doubles import FakeBox
from voidbox_lab.daemon import check
from voidbox_lab.spec.api import CheckReport

pytestmark = pytest.mark.anyio


async def silent(box: FakeBox, interval_s: float) -> AsyncIterator[Any]:
    await anyio.sleep(60)
    yield


async def ended(box: FakeBox, interval_s: float) -> AsyncIterator[Any]:
    for sample in ():
        yield sample


@pytest.mark.parametrize(
    ("exit_code", "telemetry", "failed"),
    [
        (0, None, {}),
        (1, None, {"exec": "CommandFailed"}),
        (0, ended, {"telemetry": "ProviderError"}),
        (0, silent, {"telemetry": "LimitExceeded"}),
    ],
)
async def test_a_box_that_boots_and_fails_is_not_ok(
    house: Any, monkeypatch: pytest.MonkeyPatch, exit_code: int, telemetry: Any, failed: dict[str, str]
) -> None:
    async def found(*_: Any) -> Any:
        return "found", {}

    async def boxes() -> Any:
        return house.backend

    async def run(box: FakeBox, argv: Any, *, timeout_s: float) -> Any:
        return SimpleNamespace(exit_code=exit_code)

    async def ping(box: FakeBox) -> float:
        return 0.001

    for step in ("_image", "_libvirt", "_accelerator"):
        monkeypatch.setattr(check._Check, step, found)
    monkeypatch.setattr(house.backend, "boxes", boxes)
    monkeypatch.setattr(FakeBox, "run", run, raising=False)
    monkeypatch.setattr(FakeBox, "ping", ping, raising=False)
    monkeypatch.setattr(check, "SAMPLE_S", 0.1)
    if telemetry:
        monkeypatch.setattr(FakeBox, "telemetry", telemetry)
    report = [e async for e in house.client.check()][-1]
    assert isinstance(report, CheckReport)
    assert {s.name: s.data["type"] for s in report.steps if s.state == "failed"} == failed
    assert report.ok == (not failed)
