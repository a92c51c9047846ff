"""The distribution's Prometheus fetches what a daemon has measured."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.daemon.conftest import settings
from tests.engine.doubles import says
from tests.engine.lab import box, chain
from tests.observe.daemons import MODEL, backend, daemon, meter, ran
from tests.ports import free_port
from voidbox_lab.settings import Settings
from voidbox_lab.spec import RunSpec, Stage

__all__ = ["settings"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("at_once")]
WAIT_S = 60.0
"""It takes a second to start, and fetches five times a second."""


@pytest.fixture
def scraped(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port where daemons of this test have their metrics fetched."""
    port = free_port()
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "127.0.0.1")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(port))
    return port


class Prometheus:
    """A server, by its query API."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=10)

    async def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that `expression` finds now."""
        answer = await self.http.get("/api/v1/query", params={"query": expression})
        result: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
        return [(found["metric"], float(found["value"][1])) for found in result]

    async def until(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What `expression` finds, once it finds something."""
        with anyio.fail_after(WAIT_S):
            while not (found := await self.query(expression)):
                await anyio.sleep(0.1)
        return found


@asynccontextmanager
async def prometheus(directory: Path, target: int) -> AsyncIterator[Prometheus]:
    """One that fetches from port `target`, with its data in `directory`."""
    program = shutil.which("prometheus")
    assert program, "prometheus is not installed; run scripts/setup --dev"
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{"job_name": "voidbox", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
    ]
    log = (directory / "log").open("wb")
    process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        found = Prometheus(f"http://{address}")
        async with found.http:
            with anyio.fail_after(WAIT_S):
                while not await _ready(found.http):
                    assert process.poll() is None, (directory / "log").read_text()[-2000:]
                    await anyio.sleep(0.1)
            yield found
    finally:
        process.terminate()
        process.wait(20)
        log.close()


async def _ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/-/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def test_a_prometheus_has_tokens_costs_and_durations(
    settings: Settings, scraped: int, tmp_path: Path
) -> None:
    """By the names that docs/observability.md says."""
    async with prometheus(tmp_path, scraped) as server, daemon(settings, None) as it:
        backend(it).scripts["one"] = [("sleep", 0.5), *says("the answer", result="the answer")]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meter, it, "one")
            await ran(it, RunSpec(name="demo", stages=(Stage(box=box("one", model=MODEL)),)))
        [(labels, cost)] = await server.until("voidbox_cost_total")
        assert cost == pytest.approx(0.01)
        assert labels == {
            "__name__": "voidbox_cost_total",
            "job": "voidbox",
            "instance": f"127.0.0.1:{scraped}",
            "gen_ai_provider_name": "openai",
            "gen_ai_request_model": "gpt-x",
            "voidbox_model_source": "live",
            "voidbox_stage_name": "one",
        }
        tokens = await server.until("sum by (gen_ai_token_type) (gen_ai_client_token_usage_sum)")
        assert sorted((found["gen_ai_token_type"], value) for found, value in tokens) == [
            ("input", 10),
            ("output", 5),
        ]
        assert await server.until("gen_ai_client_operation_duration_seconds_count") != []
        [(labels, _)] = await server.until("voidbox_stage_duration_seconds_sum")
        assert labels["voidbox_stage_state"] == "succeeded"
        [(labels, count)] = await server.until("voidbox_boot_duration_seconds_count")
        assert (labels["voidbox_box_isolation"], labels["voidbox_box_start"], count) == ("tcg", "cold", 1)
        [(labels, one)] = await server.until("target_info")
        assert (labels["service_name"], one) == ("voidbox-lab", 1)
        text = (await server.http.get(f"http://127.0.0.1:{scraped}/metrics")).text
        for what in ("the answer", "do one", "python_info", "process_"):
            assert what not in text, "neither contents of messages nor what else this process measures"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{scraped}/metrics")


async def test_a_port_in_use_holds_no_run(
    settings: Settings, scraped: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon's log says what is amiss."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", scraped))
        taken.listen()
        async with daemon(settings, None) as it:
            assert (await ran(it, chain("one"))).state == "succeeded"
    assert f"Prometheus cannot fetch metrics at 127.0.0.1 port {scraped}" in caplog.text
