"""The trace of real boxes: what a daemon process sends of them, and what the notebook makes of the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.observe.collector import Collector, attributes, collecting
from voidbox_lab import images
from voidbox_lab.api import VoidBox
from voidbox_lab.client import Client
from voidbox_lab.settings import Settings
from voidbox_lab.spec.tracing import trace_id, traceparent

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def home(tmp_path: Path, collector: Collector) -> Iterator[Settings]:
    """A home of its own over the shared cache, whose daemon exports to `collector`."""
    cache = Settings.from_env().cache
    images.build(Settings.from_env().prepare())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOIDBOX_HOME", str(tmp_path / "home"))
        patch.setenv("VOIDBOX_CACHE", str(cache))
        patch.setenv("VOIDBOX_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
        settings = replace(Settings.from_env(), spares=0).prepare()
        yield settings
        with Client(settings, start=False) as client:
            client.shutdown()


def test_real_boxes_make_one_trace(home: Settings, collector: Collector) -> None:
    """An agent that calls a tool, then a command; both are told the context that they work in."""
    prompt = "```\nsleep 1; echo $TRACEPARENT\n```"
    agent = VoidBox("agent", prompt=prompt, model="scripted:shell", memory_mb=256)
    command = VoidBox("command", command="echo $TRACEPARENT", memory_mb=256)
    run = (agent | command).run(settings=home).check()
    assert traceparent(run.id, "agent", 1) in (run.output("agent") or "")
    assert run.output("command") == f"{traceparent(run.id, 'command', 1)}\n"

    trace = run.trace()
    spans = {span.span_id: span for span in trace.spans}
    for span in trace.spans:
        parent = spans.get(span.parent_id or "")
        assert span.end is not None
        assert parent is None or parent.start - 0.2 <= span.start <= (parent.end or 0) + 0.2, span
    work = next(span for span in trace.spans if span.name == "invoke_agent agent")
    inner = [span for span in trace.spans if span.parent_id == work.span_id]
    assert [span.what for span in inner] == ["model", "tool", "model"]
    (tool,) = [span for span in inner if span.what == "tool"]
    assert tool.attributes["gen_ai.tool.name"] == "bash"
    assert 0.9 < (tool.seconds or 0) < 60
    samples = run.telemetry()
    during = samples[samples["span_id"] == tool.span_id]
    assert len(during), "it took a second, which is a sample's distance"
    assert during["net_tx_bytes"].min() > 0, "its prompt went out before"
    costs = run.tool_costs()
    assert costs["asked_usd"].tolist() == costs["read_usd"].tolist() == [0.0], "a scripted model costs nothing"
    assert "execute_tool bash" in trace._repr_html_()

    collector.until(lambda: {span.span_id.hex() for span in collector.spans} >= set(spans))
    collector.until(lambda: "voidbox.boot.duration" in collector.metrics and bool(collector.logs))
    sent = {span.span_id.hex(): span for span in collector.spans}
    assert set(sent) == set(spans)
    assert {span.trace_id.hex() for span in sent.values()} == {trace_id(run.id)}
    assert attributes(sent[work.span_id])["voidbox.agent"] == "lab-agent"
    boots = collector.metrics["voidbox.boot.duration"].histogram.data_points
    assert sum(point.count for point in boots) == 2
    assert {record.span_id.hex() for record in collector.logs} <= set(spans)
