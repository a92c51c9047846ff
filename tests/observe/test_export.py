"""What a collector gets of real runs in a daemon over doubles; and that none of it ever holds a run."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import voidbox_lab
from tests.daemon.conftest import settings
from tests.engine.doubles import says
from tests.engine.lab import box, chain
from tests.observe.collector import Collector, attributes, collecting
from tests.observe.daemons import MODEL, backend, daemon, meter, ran
from tests.observe.told import Told, conversation
from voidbox_lab.observe import export
from voidbox_lab.observe.destinations import Destinations
from voidbox_lab.observe.export import MAX_WAITING, exporting
from voidbox_lab.observe.spans import spans_of
from voidbox_lab.settings import Settings
from voidbox_lab.spec import RunSpec, Stage
from voidbox_lab.spec.events import Denied
from voidbox_lab.spec.tracing import trace_id, work_span
from voidbox_lab.store import Entry, SqliteStore

__all__ = ["settings"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("at_once")]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


async def test_a_pipeline_reaches_the_collector(settings: Settings, collector: Collector) -> None:
    """Spans with names, parents, attributes and times; metrics; logs that belong to spans."""
    denied = Denied(rule="commands", subject="/usr/bin/nc", message="nc is not allowed.", program="nc")
    async with daemon(settings, collector.url) as it:
        script = [
            ("out", b'{"tool": "ls secret"}\n'),
            ("err", b"warming up\n"),
            ("denied", denied),
            ("sleep", 0.5),
        ]
        backend(it).scripts["one"] = [*script, *says("the answer", result="the answer")]
        spec = RunSpec(
            name="demo",
            stages=(Stage(box=box("one", model=MODEL)), Stage(box=box("two", model=MODEL), needs=("one",))),
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meter, it, "one")
            began = time.time()
            record = await ran(it, spec)
            ended = time.time()
        events = await it.store.read_events(record.id, limit=5000)
    # The daemon has ended: all of it is there, without waiting.
    expected = {span.span_id: span for span in spans_of(record, events)}
    got = {span.span_id.hex(): span for span in collector.spans}
    assert len(got) == len(collector.spans), "none came twice"
    assert set(got) == set(expected)
    for id_, span in got.items():
        mine = expected[id_]
        assert span.trace_id.hex() == trace_id(record.id)
        assert span.parent_span_id.hex() == (mine.parent_id or "")
        assert span.name == mine.name
        assert attributes(span) == {k: list(v) if isinstance(v, tuple) else v for k, v in mine.attributes.items()}
        assert began - 1 < span.start_time_unix_nano / 1e9 <= span.end_time_unix_nano / 1e9 < ended + 1
        assert span.start_time_unix_nano / 1e9 == pytest.approx(mine.start, abs=1e-5)
    assert {span.name for span in got.values()} == {
        *("invoke_workflow demo", "stage one", "stage two", "queue", "boot", "provision", "collect"),
        *("invoke_agent one", "invoke_agent two", "chat gpt-x", "execute_tool bash"),
    }
    chat = next(span for span in got.values() if span.name == "chat gpt-x")
    assert chat.kind == chat.SPAN_KIND_CLIENT
    assert attributes(chat)["server.address"] == "127.0.0.1"
    tool = next(span for span in got.values() if span.name == "execute_tool bash")
    assert tool.status.code == tool.status.STATUS_CODE_ERROR, "it has no result"
    assert chat.parent_span_id.hex() == tool.parent_span_id.hex() == work_span(record.id, "one", 1)
    for what in ("secret", "the answer", "do one"):
        assert what not in str(collector.requests), "contents of messages are not sent"

    metrics = collector.metrics
    assert set(metrics) >= {
        *("gen_ai.client.token.usage", "gen_ai.client.operation.duration", "voidbox.cost"),
        *("voidbox.stage.duration", "voidbox.boot.duration", "voidbox.guest.cpu", "voidbox.guest.memory"),
    }
    usage = {
        attributes(p)["gen_ai.token.type"]: p for p in metrics["gen_ai.client.token.usage"].histogram.data_points
    }
    assert {kind: point.sum for kind, point in usage.items()} == {"input": 10, "output": 5}
    assert attributes(usage["input"]) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.token.type": "input",
    }
    assert list(usage["input"].explicit_bounds)[:3] == [1, 4, 16]
    (cost,) = metrics["voidbox.cost"].sum.data_points
    assert cost.as_double == 0.01
    assert sum(p.count for p in metrics["voidbox.stage.duration"].histogram.data_points) == 2
    (cpu, *_) = metrics["voidbox.guest.cpu"].gauge.data_points
    assert cpu.as_double == 0.5
    (memory, *_) = metrics["voidbox.guest.memory"].gauge.data_points
    assert memory.as_int == 1000 * 1024

    logs = {record.body.string_value: record for record in collector.logs}
    assert {
        "[vm:one] warming up",
        "[vm:one] denied commands: nc is not allowed.",
        "[vm:two] stage succeeded",
    } <= set(logs)
    line = logs["[vm:one] warming up"]
    assert line.trace_id.hex() == trace_id(record.id)
    assert line.span_id.hex() in expected
    assert all(record.span_id.hex() in expected for record in collector.logs)

    (_, body, headers) = next(r for r in collector.requests if r[0] == "/v1/traces")
    assert headers["content-type"] == "application/x-protobuf"
    assert attributes(body.resource_spans[0].resource)["service.name"] == "voidbox-lab"


async def test_contents_are_sent_if_asked_for(
    settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the conventions' own variable; a service may have another name."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    async with daemon(settings, collector.url) as it:
        await ran(it, chain("one"))
    worker = next(span for span in collector.spans if span.name == "invoke_agent one")
    assert "do one" in attributes(worker)["gen_ai.input.messages"]
    (_, body, _) = next(r for r in collector.requests if r[0] == "/v1/traces")
    assert attributes(body.resource_spans[0].resource)["service.name"] == "ours"


async def test_opentelemetrys_own_variables(
    settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One endpoint for all, one for a signal, headers, and a signal that is not wanted."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=letmein")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    async with daemon(settings, None) as it:
        await ran(it, chain("one"))
    assert {path for path, _, _ in collector.requests} == {"/v1/traces", "/v1/logs"}
    assert all(headers["x-token"] == "letmein" for _, _, headers in collector.requests)


async def test_variables_that_the_sdk_refuses_stop_no_daemon(
    settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be for another program: runs go on, and the log says that nothing is exported."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")  # less than a batch
    async with daemon(settings, collector.url) as it:
        await ran(it, chain("one"))
    assert not collector.requests
    assert "no spans, metrics or logs are exported" in caplog.text


async def test_the_processs_own_providers_are_left_alone(settings: Settings, collector: Collector) -> None:
    """Whoever embeds this may have them."""
    from opentelemetry import metrics, trace

    before = trace.get_tracer_provider(), metrics.get_meter_provider()
    async with daemon(settings, collector.url) as it:
        await ran(it, chain("one"))
        assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before


@pytest.mark.parametrize("how", ["nobody", "silent", "slow", "broken"])
async def test_a_collector_that_does_not_work_holds_no_run(
    settings: Settings, collector: Collector, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the end of the daemon either."""
    monkeypatch.setattr("voidbox_lab.observe.sink.FLUSH_S", 0.5)
    url = collector.url
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        if how == "silent":
            hole.listen(1)
        if how in {"nobody", "silent"}:
            url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        elif how == "slow":
            collector.hold.set()
        else:
            collector.status = 503
        async with daemon(settings, url) as it:
            began = time.monotonic()
            for _ in range(3):
                assert (await ran(it, chain("one", "two"))).state == "succeeded"
            took = time.monotonic() - began
            began = time.monotonic()
        assert took < 15
        assert time.monotonic() - began < 15


async def test_more_than_can_be_taken_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """But for what tells states and costs; and it is said."""
    caplog.set_level(logging.WARNING, "voidbox_lab")
    told = Told()
    told.until_running()
    for n in range(MAX_WAITING + 100):
        told.sample(5.0 + n / 1000)
    told.call(11.0)
    told.stage(12.0, "succeeded", output="x")
    told.run(12.0, "succeeded")
    store = await stored(tmp_path, told)
    with collecting() as collector:
        async with exporting(Destinations({"traces": f"{collector.url}/v1/traces"}), store) as exporter:
            exporter.recorded("run-1", told.events)
        assert {span.name for span in collector.spans} >= {"stage a", "chat claude-x", "invoke_workflow"}
    assert "events were not exported: too many came at once" in caplog.text
    await store.aclose()


async def stored(tmp_path: Path, told: Told, count: int | None = None) -> SqliteStore:
    store = await SqliteStore.open(tmp_path / "runs.sqlite")
    await store.create_run("run-1", told.spec, at=1000.0)
    await store.append("run-1", [Entry(e.body, e.stage, e.at) for e in told.events[:count]])
    return store


async def test_a_run_that_another_daemon_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was open when that one died ends here, with the same ids; what had ended is not sent again."""
    monkeypatch.setattr(export, "PAGE", 3)
    told = conversation()
    store = await stored(tmp_path, told)
    with collecting() as collector:
        async with exporting(Destinations({"traces": f"{collector.url}/v1/traces"}), store) as exporter:
            exporter.recorded("run-1", told.events[9:])
        whole = {span.span_id: span for span in spans_of(told.record, told.events)}
        got = {span.span_id.hex(): span for span in collector.spans}
        assert {span.name for span in got.values()} == {
            *("execute_tool Bash", "execute_tool mcp__clock__now", "chat claude-x", "invoke_agent a"),
            *("collect", "stage a", "invoke_workflow demo"),
        }
        assert all(span.start_time_unix_nano == int(whole[id_].start * 1e9) for id_, span in got.items())
    await store.aclose()


async def test_late_news_and_unknown_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model call that ends after its run; events of a run that was deleted meanwhile."""
    told = conversation()
    told.call(20.0)
    store = await stored(tmp_path, told)
    with collecting() as collector:
        async with exporting(Destinations({"traces": f"{collector.url}/v1/traces"}), store) as exporter:
            exporter.recorded("run-1", told.events[:-1])
            await anyio.sleep(0.1)
            exporter.recorded("run-1", told.events[-1:])
            exporter.recorded("gone", [event.model_copy(update={"run": "gone"}) for event in told.events])
        chats = [span for span in collector.spans if span.name == "chat claude-x"]
        assert len(chats) == 3
        assert len({chat.parent_span_id for chat in chats}) == 1
    await store.aclose()


IMPORTS = """
import asyncio, sys
from pathlib import Path
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.settings import Settings
from tests.daemon.doubles import fake_backend

async def main():
    async with Daemon.open(Settings.from_env().prepare(), fake_backend):
        print(*sorted({"opentelemetry.sdk", "opentelemetry.exporter", "requests"} & sys.modules.keys()))

asyncio.run(main())
"""


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
def test_without_an_endpoint_nothing_is_imported(tmp_path: Path, endpoint: str) -> None:
    """It would cost every start of a daemon half a second and tens of megabytes."""
    root = Path(voidbox_lab.__file__).parent.parent
    home = {"VOIDBOX_HOME": str(tmp_path), "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"]}
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env={**home, "PYTHONPATH": path, "VOIDBOX_OTLP_ENDPOINT": endpoint, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    assert bool(done.stdout.split()) == bool(endpoint), done.stdout


def of(env: dict[str, str], **options: Any) -> dict[str, str] | None:
    found = Destinations.of(replace(Settings.from_env({}), **options), env)
    return None if found is None else dict(found.endpoints)


def test_where_it_goes() -> None:
    """Our own variable before theirs, a signal's before that of all; never by a protocol that is not spoken."""
    base = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318/"}
    everywhere = {signal: f"http://a:4318/v1/{signal}" for signal in ("traces", "metrics", "logs")}
    assert of({}) is None
    assert of(base) == everywhere
    assert of(base | {"OTEL_SDK_DISABLED": "true"}) is None
    assert of(base, otlp="http://b/x") == {signal: f"http://b/x/v1/{signal}" for signal in everywhere}
    assert of({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/all"}) == {"traces": "http://c/all"}
    assert of(base | {"OTEL_TRACES_EXPORTER": "console"}) == {k: v for k, v in everywhere.items() if k != "traces"}
    assert of(base | {"OTEL_TRACES_EXPORTER": "console,otlp"}) == everywhere
    assert of(base | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) is None
    assert of(base | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, otlp="http://b") is not None


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, None),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, ("localhost", 9464)),
        ({"OTEL_METRICS_EXPORTER": "otlp, prometheus", "OTEL_EXPORTER_PROMETHEUS_HOST": "::1"}, ("::1", 9464)),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "9000"}, ("localhost", 9000)),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "0"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "http"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_where_it_is_fetched(env: dict[str, str], found: tuple[str, int] | None) -> None:
    """By OpenTelemetry's own variables, with their defaults."""
    destinations = Destinations.of(Settings.from_env({}), env)
    assert (destinations.scrape if destinations else None) == found
