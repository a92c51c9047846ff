"""Telemetry as levels and rates, in exact numbers."""

from __future__ import annotations

import math

from tests.widgets.dashboards.samples import telemetry
from voidbox_lab.observe.frames import telemetry_frame
from voidbox_lab.observe.rates import RATE_COLUMNS, rates_frame
from voidbox_lab.spec.events import Event, Telemetry


def frame(*samples: Telemetry) -> object:
    return telemetry_frame(
        Event(seq=n, run="r", at=100.0 + n, stage="a", body=s) for n, s in enumerate(samples, 1)
    )


def test_counters_become_rates() -> None:
    """Half a MB a second read, a quarter written, two kB in and one out, as the samples say."""
    rates = rates_frame(frame(*(telemetry(n) for n in range(4))))  # type: ignore[arg-type]
    assert list(rates.columns) == list(RATE_COLUMNS)
    assert math.isnan(rates["disk_read_mb_s"].iloc[0])
    assert rates["disk_read_mb_s"].tolist()[1:] == [0.5, 0.5, 0.5]
    assert rates["disk_write_mb_s"].tolist()[1:] == [0.25, 0.25, 0.25]
    assert (rates["net_rx_kb_s"].iloc[1], rates["net_tx_kb_s"].iloc[1]) == (2.0, 1.0)
    assert rates["cpu"].iloc[0] == 50.0
    assert rates["memory_mb"].tolist() == [120.0, 122.0, 124.0, 126.0]
    assert rates["memory_total_mb"].iloc[0] == 512.0


def test_another_box_begins_anew() -> None:
    """Counters since boot that fell are not a negative rate."""
    rates = rates_frame(frame(telemetry(5), telemetry(6), telemetry(0), telemetry(1)))  # type: ignore[arg-type]
    assert [math.isnan(v) for v in rates["disk_read_mb_s"]] == [True, False, True, False]


def test_no_more_points_than_pixels() -> None:
    rates = rates_frame(frame(*(telemetry(n) for n in range(1001))), points=100)  # type: ignore[arg-type]
    assert len(rates) == 100
    assert rates.index.is_monotonic_increasing
    assert rates["disk_read_mb_s"].iloc[50] == 0.5


def test_of_nothing_there_is_nothing() -> None:
    assert len(rates_frame(frame())) == 0  # type: ignore[arg-type]
