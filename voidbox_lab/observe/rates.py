"""Guest telemetry as a person reads it: counters since boot as rates, bounded in length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

MAX_POINTS = 1500
"""Most rows of `rates_frame`: more than a chart has pixels for is averaged."""
RATE_COLUMNS = (
    *("cpu", "memory_mb", "memory_total_mb", "disk_mb", "disk_read_mb_s", "disk_write_mb_s"),
    *("net_rx_kb_s", "net_tx_kb_s", "processes"),
)
"""`cpu` is a percentage of all vCPUs. MB and kB are powers of 1024. A box's first sample has NaN for rates."""
_COUNTERS = {
    "disk_read_mb_s": ("disk_read_bytes", 1 << 20),
    "disk_write_mb_s": ("disk_write_bytes", 1 << 20),
    "net_rx_kb_s": ("net_rx_bytes", 1 << 10),
    "net_tx_kb_s": ("net_tx_bytes", 1 << 10),
}


def rates_frame(telemetry: pd.DataFrame, *, points: int = MAX_POINTS) -> pd.DataFrame:
    """One stage's samples as levels and rates, at most `points` rows, indexed by time; columns `RATE_COLUMNS`.

    `telemetry` is a `telemetry_frame` of that stage. Where a new box began (its uptime fell) no rate is made up.
    """
    import numpy as np
    import pandas as pd

    out: pd.DataFrame = pd.DataFrame(index=telemetry.index)
    out["cpu"] = telemetry["cpu"] * 100
    for name, kb in (("memory_mb", "memory_used_kb"), ("memory_total_mb", "memory_total_kb")):
        out[name] = telemetry[kb] / 1024
    out["disk_mb"] = telemetry["disk_used_kb"] / 1024
    uptime = telemetry["uptime_s"].astype("float64").diff()
    elapsed = uptime.where(uptime > 0)
    for name, (counter, unit) in _COUNTERS.items():
        grown = telemetry[counter].astype("float64").diff()
        out[name] = grown.where(grown >= 0) / elapsed / unit
    out["processes"] = telemetry["processes"]
    out = out[list(RATE_COLUMNS)].astype("float64")
    if len(out) <= points:
        return out
    group = np.arange(len(out)) * points // len(out)
    thinned: pd.DataFrame = out.groupby(group).mean()
    thinned.index = out.index[np.flatnonzero(np.diff(group, prepend=-1))]
    return thinned
