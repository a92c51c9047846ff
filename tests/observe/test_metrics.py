"""What is measured of guests, who say what they like: nothing of it keeps figures of others from the collector."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.engine.doubles import SAMPLE
from voidbox_lab.observe.metrics import MAX_BYTES, Metrics
from voidbox_lab.spec.events import Event


@pytest.mark.parametrize(
    ("said", "cpu", "memory"),
    [
        ({"cpu": 0.25, "memory_used_kb": 1024}, 0.25, 1 << 20),
        ({"cpu": float("nan"), "memory_used_kb": -5}, 0, 0),
        ({"cpu": float("inf"), "memory_used_kb": (1 << 63) - 1}, 1, MAX_BYTES),
        ({"cpu": -1e300, "memory_used_kb": 1 << 62}, 0, MAX_BYTES),
    ],
)
def test_gauges_are_bounded(said: dict[str, Any], cpu: float, memory: int) -> None:
    reader = InMemoryMetricReader()
    metrics = Metrics(MeterProvider([reader]).get_meter("test"))
    sample = SAMPLE.model_copy(update=said)
    metrics.event(Event(seq=1, run="run-1", stage="s", at=0.0, body=sample))
    data = reader.get_metrics_data()
    assert data is not None
    encode_metrics(data)
    found = {
        m.name: m.data.data_points[0].value  # type: ignore[union-attr]
        for m in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert found == {"voidbox.guest.cpu": cpu, "voidbox.guest.memory": memory}
