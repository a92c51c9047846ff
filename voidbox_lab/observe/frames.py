"""A run and its events as pandas frames; what they come to, `accessor` says. pandas is imported when first needed:
it costs half a second.

Events are taken one by one and kept as plain values, so that what a frame of a million of them needs on its way is
not much more than the frame.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from voidbox_lab.observe.accessor import register
from voidbox_lab.spec import RunRecord, StageRecord
from voidbox_lab.spec.events import Denied, Egress, Event, Telemetry

if TYPE_CHECKING:
    import pandas as pd

STAGE_COLUMNS = (
    "state",
    "attempts",
    "cached",
    "output",
    "isolation",
    "vsock",
    "model",
    "model_source",
    "turns",
    "tool_calls",
    "denied",
    "connections",
    "bytes_out",
    "bytes_in",
    "files",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cost_usd",
    "unpriced",
    "boot_s",
    "duration_s",
    "trouble",
)
"""Columns of `stages_frame`. `cached` is the run that an earlier result was taken from. `cost_usd` is NaN where
`unpriced` or where no model was asked; 0 for an earlier result. `boot_s` and `duration_s` are seconds. `denied`
and `connections` are counts, `files` is the number of output files."""


def stages_frame(record: RunRecord) -> pd.DataFrame:
    """One row for each stage, in declared order, indexed by its name; columns `STAGE_COLUMNS`."""
    import pandas as pd

    register()
    rows = [_stage_row(record.stages[s.box.name]) for s in record.spec.stages]
    index = pd.Index([s.box.name for s in record.spec.stages], name="stage")
    frame = pd.DataFrame(rows, columns=list(STAGE_COLUMNS), index=index)
    numbers = ["cost_usd", "boot_s", "duration_s"]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def events_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row for each event, indexed by its number: time, stage, type, and the body's fields as a dict."""
    import pandas as pd

    register()
    seq, at, stage, kind, body = array("q"), array("d"), _Shared(), _Shared(), []
    for event in events:
        seq.append(event.seq)
        at.append(event.at)
        stage.append(event.stage)
        kind.append(event.body.type)
        # Field names are shared by all these dicts, a dict's own text is not.
        body.append(event.body.model_dump(mode="json", exclude={"type"}))
    columns = {"at": _times(at), "stage": stage.values, "type": kind.values, "body": body}
    return pd.DataFrame(columns, index=pd.Index(_numbers(seq), name="seq"))


def telemetry_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row for each sample, indexed by time (UTC); fields as in `spec.events.Telemetry`, without `top`."""
    import pandas as pd

    register()
    at, stage = array("d"), _Shared()
    fields = {
        name: array("d" if field.annotation is float else "q")
        for name, field in Telemetry.model_fields.items()
        if name not in {"type", "top"}
    }
    for event in events:
        if isinstance(event.body, Telemetry):
            at.append(event.at)
            stage.append(event.stage)
            for name, column in fields.items():
                column.append(getattr(event.body, name))
    columns = {"stage": stage.values} | {name: _numbers(column) for name, column in fields.items()}
    return pd.DataFrame(columns, index=pd.Index(_times(at), name="at"))


EGRESS_COLUMNS = (
    *("stage", "host", "port", "verdict", "rule", "address", "bytes_out", "bytes_in", "duration_s", "reason"),
    "tool_call",
)
DENIAL_COLUMNS = ("stage", "rule", "subject", "message", "program", "count")


def egress_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row for each connection that left a box, or was to, indexed by the time of its end (UTC); fields as in
    `spec.events.Egress`."""
    return _bodies_frame(events, Egress, EGRESS_COLUMNS)


def denials_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row for each thing that a policy forbade, indexed by time (UTC); fields as in `spec.events.Denied`."""
    return _bodies_frame(events, Denied, DENIAL_COLUMNS)


def _bodies_frame(events: Iterable[Event], kind: type[Egress | Denied], columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    register()
    at, rows = array("d"), []
    for event in events:
        if isinstance(event.body, kind):
            at.append(event.at)
            rows.append((event.stage, *(getattr(event.body, name) for name in columns[1:])))
    return pd.DataFrame(rows, columns=list(columns), index=pd.Index(_times(at), name="at"))


class _Shared:
    """A column of few texts, each of which is in memory once."""

    def __init__(self) -> None:
        self.values: list[str | None] = []
        self._known: dict[str | None, str | None] = {}

    def append(self, value: str | None) -> None:
        self.values.append(self._known.setdefault(value, value))


def _numbers(column: array[Any]) -> Any:
    import numpy as np

    return np.frombuffer(column, dtype="float64" if column.typecode == "d" else "int64") if column else []


def _times(column: array[float]) -> Any:
    import pandas as pd

    return pd.to_datetime(_numbers(column), unit="s", utc=True)


def _stage_row(stage: StageRecord) -> dict[str, Any]:
    return {
        "state": stage.state,
        "attempts": stage.attempts,
        "cached": stage.cached.run if stage.cached else None,
        "output": stage.output,
        "isolation": stage.box.isolation if stage.box else None,
        "vsock": stage.box.vsock if stage.box else None,
        "model": stage.model,
        "model_source": stage.model_source,
        "turns": stage.turns,
        "tool_calls": stage.tool_calls,
        "denied": stage.denied,
        "connections": stage.connections,
        "bytes_out": stage.bytes_out,
        "bytes_in": stage.bytes_in,
        "files": len(stage.files),
        "input_tokens": stage.tokens.input,
        "output_tokens": stage.tokens.output,
        "cache_read_tokens": stage.tokens.cache_read,
        "cache_write_tokens": stage.tokens.cache_write,
        "cost_usd": 0.0 if stage.cached else stage.cost_usd,
        "unpriced": stage.unpriced and not stage.cached,
        "boot_s": stage.box.boot_s if stage.box else None,
        "duration_s": stage.duration_s,
        "trouble": stage.trouble.message if stage.trouble else None,
    }
