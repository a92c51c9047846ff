"""How a stage's box is, as a view keeps it: the last samples of its procfs as lines to draw, its busiest
processes. Folds `Telemetry`; bounded, and finite whatever the guest says."""

from __future__ import annotations

from dataclasses import dataclass

from voidbox_lab.spec.events import Telemetry
from voidbox_lab.widgets.frozen import replaced
from voidbox_lab.widgets.text import one_line

MAX_SAMPLES = 60
MAX_TOP = 5
MOST = 1 << 62
"""What no honest counter exceeds."""


@dataclass(frozen=True)
class Process:
    """One of the busiest."""

    pid: int
    name: str
    cpu: float
    """Share of one CPU."""
    rss_kb: int


@dataclass(frozen=True)
class Vitals:
    """The last `MAX_SAMPLES` samples, oldest first."""

    cpu: tuple[float, ...] = ()
    """Busy share of all vCPUs, 0 to 1."""
    memory: tuple[float, ...] = ()
    """Used share of the guest's memory, 0 to 1."""
    disk: tuple[float, ...] = ()
    """Bytes per second, read and written."""
    network: tuple[float, ...] = ()
    """Bytes per second, to and from gateway and egress proxy."""
    memory_used_kb: int = 0
    memory_total_kb: int = 0
    disk_used_kb: int = 0
    disk_total_kb: int = 0
    processes: int = 0
    load: float = 0.0
    top: tuple[Process, ...] = ()
    disk_bytes: int = 0
    """Since boot; so are `network_bytes`."""
    network_bytes: int = 0
    uptime_s: float = 0.0


def sampled(vitals: Vitals, sample: Telemetry) -> Vitals:
    """`vitals` after a sample."""
    total = _counter(sample.memory_total_kb) or 1
    disk = _counter(sample.disk_read_bytes) + _counter(sample.disk_write_bytes)
    network = _counter(sample.net_rx_bytes) + _counter(sample.net_tx_bytes)
    uptime = _finite(sample.uptime_s)
    passed = uptime - vitals.uptime_s
    if vitals.cpu and passed < 0:  # another attempt, in another box: its counters begin anew
        vitals, passed = replaced(vitals, disk_bytes=0, network_bytes=0), uptime
    known = bool(vitals.cpu)
    return Vitals(
        cpu=_put(vitals.cpu, _share(sample.cpu)),
        memory=_put(vitals.memory, _share(sample.memory_used_kb / total)),
        disk=_put(vitals.disk, _rate(disk - vitals.disk_bytes, passed) if known else 0.0),
        network=_put(vitals.network, _rate(network - vitals.network_bytes, passed) if known else 0.0),
        memory_used_kb=_counter(sample.memory_used_kb),
        memory_total_kb=total,
        disk_used_kb=_counter(sample.disk_used_kb),
        disk_total_kb=_counter(sample.disk_total_kb),
        processes=_counter(sample.processes),
        load=_finite(sample.load1),
        top=tuple(
            Process(p.pid, one_line(p.name, 40), _finite(p.cpu), _counter(p.rss_kb)) for p in sample.top[:MAX_TOP]
        ),
        disk_bytes=disk,
        network_bytes=network,
        uptime_s=uptime,
    )


def _put(samples: tuple[float, ...], value: float) -> tuple[float, ...]:
    return (*samples, value)[-MAX_SAMPLES:]


def _share(value: float) -> float:
    # NaN compares false with everything and ends as 0.
    return round(min(1.0, value), 3) if value > 0 else 0.0


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 1) if count > 0 and seconds > 0 else 0.0


def _finite(value: float) -> float:
    return min(value, 1e12) if value > 0 else 0.0


def _counter(value: int) -> int:
    return min(max(0, value), MOST)
