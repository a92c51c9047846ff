"""Samples of the guest's procfs (proc(5)) for the host: CPU, load, memory, disk, network, busiest processes.

A box has no network card: what counts as its network is what the ways to the host carried (`proxy`).

Cheap on purpose: a handful of small reads per sample, kernel threads skipped once they are known. The fields are
those of the host's Telemetry event.
"""

from __future__ import annotations

import os
from time import monotonic

from wire.protocol import CANCELLED, MIN_INTERVAL_S

from .calls import Call, Handler, OpError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .loop import Loop, Timer

TOP = 5
SECTOR = 512
"""/proc/diskstats counts in units of 512 bytes, whatever the device's own sector size."""
FORGET_KERNEL_THREADS = 60
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, 1 << 16)
    finally:
        os.close(fd)
    return data


class Sampler:
    """Takes samples; shares are since the sample before, or since boot for the first."""

    def __init__(self, carried: Sequence[int]) -> None:
        """`carried`: bytes from the host's proxies and to them, which are a box's network."""
        self._carried = carried
        self._cpu = (0, 0)
        self._ticks: dict[int, int] = {}
        self._kernel: set[int] = set()
        self._count = 0
        self._when = 0.0

    def sample(self) -> dict[str, Any]:
        """One sample, as a dictionary with exactly the fields of `spec.events.Telemetry`."""
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, _read("/proc/stat").split(None, 9)[1:9])
        busy, total = user + nice + system + irq + softirq + steal, 0
        total = busy + idle + iowait
        spent, passed = busy - self._cpu[0], total - self._cpu[1]
        self._cpu = busy, total
        uptime = float(_read("/proc/uptime").split()[0])
        memory = {
            line[: line.index(b":")]: int(line.split()[1]) for line in _read("/proc/meminfo").splitlines()[:3]
        }
        disk = os.statvfs("/")
        unit = disk.f_frsize // 1024
        read, written = _disk()
        received, sent = _network()
        top, count = self._top(uptime)
        memory_total = memory[b"MemTotal"]
        return {
            "cpu": min(1.0, max(0.0, spent / passed)) if passed > 0 else 0.0,
            "load1": float(_read("/proc/loadavg").split()[0]),
            "memory_total_kb": memory_total,
            "memory_used_kb": memory_total - memory[b"MemAvailable"],
            "disk_total_kb": disk.f_blocks * unit,
            "disk_used_kb": (disk.f_blocks - disk.f_bfree) * unit,
            "disk_read_bytes": read,
            "disk_write_bytes": written,
            "net_rx_bytes": received + self._carried[0],
            "net_tx_bytes": sent + self._carried[1],
            "processes": count,
            "uptime_s": uptime,
            "top": top,
        }

    def _top(self, uptime: float) -> tuple[list[dict[str, Any]], int]:
        """The busiest user processes, and how many there are."""
        self._count += 1
        if self._count % FORGET_KERNEL_THREADS == 0:
            self._kernel.clear()  # numbers are used again
        now = monotonic()
        elapsed = now - self._when if self._when else max(uptime, 0.01)
        self._when = now
        ticks: dict[int, int] = {}
        rows = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) in self._kernel:
                continue
            pid = int(name)
            try:
                stat = _read(f"/proc/{name}/stat")
            except OSError:
                continue
            head, _, tail = stat.rpartition(b")")
            fields = tail.split()
            if pid == 2 or fields[1] == b"2":
                self._kernel.add(pid)
                continue
            ticks[pid] = int(fields[11]) + int(fields[12])
            spent = ticks[pid] - self._ticks.get(pid, 0 if self._ticks else ticks[pid])
            comm = head.partition(b"(")[2].decode("utf-8", "backslashreplace")[:64]
            rss = int(fields[21]) * _PAGE_KB
            rows.append((max(0.0, spent / _TICK / max(elapsed, 0.01)), rss, pid, comm))
        self._ticks = ticks
        rows.sort(reverse=True)
        top = [{"pid": pid, "name": comm, "cpu": cpu, "rss_kb": rss} for cpu, rss, pid, comm in rows[:TOP]]
        return top, len(rows)


def _disk() -> tuple[int, int]:
    """Bytes read from and written to all whole disks."""
    read = written = 0
    for line in _read("/proc/diskstats").splitlines():
        fields = line.split()
        if fields[2].startswith((b"vd", b"nvme", b"sd")):
            read += int(fields[5]) * SECTOR
            written += int(fields[9]) * SECTOR
    return read, written


def _network() -> tuple[int, int]:
    """Bytes received and sent on every interface but loopback."""
    received = sent = 0
    for line in _read("/proc/net/dev").splitlines()[2:]:
        name, _, counters = line.partition(b":")
        if name.strip() != b"lo":
            fields = counters.split()
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


class Telemetry:
    """The telemetry operation."""

    def __init__(self, loop: Loop, look: Callable[[], None], carried: Sequence[int]) -> None:
        self._loop, self._look, self._carried = loop, look, carried

    def operation(self, call: Call) -> None:
        """Send a sample at once, then one per interval, until cancelled."""
        subscription = _Subscription(
            self._loop, self._look, self._carried, call, call.number("interval_s", 1.0, MIN_INTERVAL_S, 3600.0)
        )
        call.handler = subscription
        subscription.tick()


class _Subscription(Handler):
    __slots__ = ("_call", "_interval", "_look", "_loop", "_sampler", "_timer")

    def __init__(
        self, loop: Loop, look: Callable[[], None], carried: Sequence[int], call: Call, interval: float
    ) -> None:
        self._loop, self._look, self._call, self._interval = loop, look, call, interval
        self._sampler = Sampler(carried)
        self._timer: Timer | None = None

    def tick(self) -> None:
        # A host that does not read gets no more samples: they are not covered by credit.
        if self._call.room(0):
            self._call.event(self._sampler.sample())
        self._look()
        if not self._call.closed:
            self._timer = self._loop.after(self._interval, lambda: self._call.guarded(self.tick))

    def on_cancel(self, hard: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._call.fail(OpError(CANCELLED, "the subscription was cancelled"))
