"""``frame.voidbox``: what a frame of ours comes to, by stage, by model, by host.

    run.to_frame().voidbox.cost()               run.events_frame().voidbox.by("stage")
    run.telemetry_frame().voidbox.by("stage")   run.egress_frame().voidbox.by("host")

pandas has it from the first frame on that `frames` makes, and not before.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Literal

from voidbox_lab.errors import UserError
from voidbox_lab.spec.events import ModelCall

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["stages", "events", "telemetry", "egress", "denials"]
TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_COLUMNS: dict[Kind, frozenset[str]] = {
    "stages": frozenset({"state", "turns", "cost_usd", "unpriced", *TOKENS}),
    "events": frozenset({"at", "stage", "type", "body"}),
    "telemetry": frozenset({"stage", "cpu", "memory_used_kb"}),
    "egress": frozenset({"stage", "host", "verdict", "bytes_out", "bytes_in"}),
    "denials": frozenset({"stage", "rule", "subject", "count"}),
}
"""Columns that tell what a frame is of."""


@cache
def register() -> None:
    """Give pandas the accessor, once. Imports pandas."""
    import pandas as pd

    pd.api.extensions.register_dataframe_accessor("voidbox")(Accessor)


class Accessor:
    """Sums and groups of a frame that `voidbox_lab.observe.frames` made, or of a part of one.

    Raises:
        AttributeError: the frame is of something else.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        has = {*map(str, frame.columns)}
        kind = next((kind for kind, columns in _COLUMNS.items() if columns <= has), None)
        if kind is None:
            raise AttributeError(
                "This frame is not one of a run's (stages, events, telemetry, egress or denials); take it from "
                "run.to_frame(), run.events_frame() and so on."
            )
        self.kind: Kind = kind
        self._frame = frame

    def cost(self) -> float:
        """Dollars; NaN if a call had no known price, for a sum that leaves something out would be a lie.

        Raises:
            UserError: the frame is not of stages or events.
        """
        return float(self._tally().cost_usd.sum(skipna=False))

    def tokens(self) -> int:
        """Tokens of all kinds, cached ones included.

        Raises:
            UserError: the frame is not of stages or events.
        """
        return int(self._tally().tokens.sum())

    def by(self, *columns: str) -> pd.DataFrame:
        """One row for each value of `columns`: figures added up; of telemetry, means and peaks.

        Columns are the frame's own or its index; of events also ``model``.

        Raises:
            UserError: there is no such column.
        """
        tally = self._tally(any_kind=True)
        known = [name for name in tally.columns if name not in _FIGURES]
        for name in columns:
            if name not in known:
                raise UserError(f"The frame has no column {name!r} to group by; it has {', '.join(known)}.")
        if not columns:
            raise UserError(f"Name the columns to group by; there are {', '.join(known)}.")
        groups = tally.groupby([*columns], dropna=False, sort=True)
        found = groups.agg(**{name: how for name, how in _FIGURES.items() if how[0] in tally.columns})
        if "cost_usd" in found:  # pandas leaves NaN out of sums
            unpriced = groups["cost_usd"].apply(lambda costs: costs.isna().any())
            found.loc[unpriced, "cost_usd"] = math.nan
        return found

    def _tally(self, *, any_kind: bool = False) -> pd.DataFrame:
        """A row for each thing that counts, with columns of `_FIGURES` and what can be grouped by."""
        if not any_kind and self.kind not in {"stages", "events"}:
            raise UserError(f"A frame of {self.kind} has no tokens and no cost; take run.to_frame().")
        tally = _events(self._frame) if self.kind == "events" else self._frame.reset_index()
        if self.kind == "stages":
            tally = tally.assign(
                stages=1,
                tokens=tally[[*TOKENS]].sum(axis=1),
                cost_usd=tally["cost_usd"].where(tally["unpriced"], tally["cost_usd"].fillna(0.0)),
            ).drop(columns=[*TOKENS])
        elif self.kind == "telemetry":
            tally = tally.rename(columns={"memory_used_kb": "memory_kb"}).assign(samples=1)
        elif self.kind == "egress":
            tally = tally.assign(connections=1, refused=(tally["verdict"] == "denied").astype(int))
        elif self.kind == "denials":
            tally = tally.rename(columns={"count": "denied"})
        return tally


_FIGURES: dict[str, tuple[str, str]] = {
    "stages": ("stages", "sum"),
    "events": ("events", "sum"),
    "turns": ("turns", "sum"),
    "tool_calls": ("tool_calls", "sum"),
    "tokens": ("tokens", "sum"),
    "cost_usd": ("cost_usd", "sum"),
    "denied": ("denied", "sum"),
    "connections": ("connections", "sum"),
    "refused": ("refused", "sum"),
    "bytes_out": ("bytes_out", "sum"),
    "bytes_in": ("bytes_in", "sum"),
    "duration_s": ("duration_s", "sum"),
    "samples": ("samples", "sum"),
    "cpu_mean": ("cpu", "mean"),
    "cpu_max": ("cpu", "max"),
    "memory_kb_max": ("memory_kb", "max"),
    "disk_read_bytes": ("disk_read_bytes", "max"),
    "disk_write_bytes": ("disk_write_bytes", "max"),
    "net_rx_bytes": ("net_rx_bytes", "max"),
    "net_tx_bytes": ("net_tx_bytes", "max"),
}
"""Figure to the column that it is of and how; counters since boot are as large as their last value."""


def _events(frame: pd.DataFrame) -> pd.DataFrame:
    """Events with what model calls among them used."""
    import pandas as pd

    calls = [
        ModelCall.model_validate(body) if kind == "model_call" else None
        for kind, body in zip(frame["type"], frame["body"], strict=True)
    ]
    return pd.DataFrame(
        {
            "stage": frame["stage"].array,
            "type": frame["type"].array,
            "model": [call and call.model for call in calls],
            "events": 1,
            "turns": [int(call is not None and call.is_answered) for call in calls],
            "tool_calls": (frame["type"] == "tool_call").astype(int).array,
            "tokens": [call.tokens.total if call else 0 for call in calls],
            "cost_usd": [_price(call) if call else 0.0 for call in calls],
        }
    )


def _price(call: ModelCall) -> float:
    return math.nan if call.is_unpriced else call.cost_usd or 0.0
