"""A run and its events as pandas frames. pandas is imported when first needed: it costs half a second."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from voidbox_lab.spec import RunRecord, StageRecord
from voidbox_lab.spec.events import Event, Telemetry

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
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cost_usd",
    "boot_s",
    "duration_s",
    "trouble",
)
"""Columns of `stages_frame`. `cached` is the run that an earlier result was taken from. `cost_usd` is NaN where
unpriced, never 0; 0 for an earlier result. `boot_s` and `duration_s` are seconds."""


def stages_frame(record: RunRecord) -> pd.DataFrame:
    """One row for each stage, in declared order, indexed by its name; columns `STAGE_COLUMNS`."""
    import pandas as pd

    rows = [_stage_row(record.stages[s.box.name]) for s in record.spec.stages]
    index = pd.Index([s.box.name for s in record.spec.stages], name="stage")
    frame = pd.DataFrame(rows, columns=list(STAGE_COLUMNS), index=index)
    numbers = ["cost_usd", "boot_s", "duration_s"]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def events_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row for each event, indexed by its number: time, stage, type, and the body's fields as a dict."""
    import pandas as pd

    rows = [(e.seq, e.at, e.stage, e.body.type, e.body.model_dump(mode="json", exclude={"type"})) for e in events]
    frame = pd.DataFrame(rows, columns=["seq", "at", "stage", "type", "body"]).set_index("seq")
    frame["at"] = pd.to_datetime(frame["at"], unit="s", utc=True)
    return frame


def telemetry_frame(events: Iterable[Event]) -> pd.DataFrame:
    """One row for each sample, indexed by time (UTC); fields as in `spec.events.Telemetry`, without `top`."""
    import pandas as pd

    fields = [name for name in Telemetry.model_fields if name not in {"type", "top"}]
    samples = [(e.at, e.stage, e.body) for e in events if isinstance(e.body, Telemetry)]
    rows = [(at, stage, *(getattr(body, name) for name in fields)) for at, stage, body in samples]
    frame = pd.DataFrame(rows, columns=["at", "stage", *fields])
    frame["at"] = pd.to_datetime(frame["at"], unit="s", utc=True)
    return frame.set_index("at")


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
        "input_tokens": stage.tokens.input,
        "output_tokens": stage.tokens.output,
        "cache_read_tokens": stage.tokens.cache_read,
        "cache_write_tokens": stage.tokens.cache_write,
        "cost_usd": 0.0 if stage.cached else stage.cost_usd,
        "boot_s": stage.box.boot_s if stage.box else None,
        "duration_s": stage.duration_s,
        "trouble": stage.trouble.message if stage.trouble else None,
    }
