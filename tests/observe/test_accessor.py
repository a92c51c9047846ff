"""``frame.voidbox``: sums and groups that leave nothing out."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.observe import frames
from voidbox_lab.spec import Model, Pipeline, RunRecord, StageRecord, Tokens, VoidBoxSpec
from voidbox_lab.spec.events import AgentText, Denied, Egress, Event, ModelCall, Telemetry, ToolCall


def box(name: str, model: str) -> Pipeline:
    """One stage."""
    return Pipeline.of(VoidBoxSpec(name=name, prompt="?", model=Model.parse(model)))


def stages(**costs: float | None) -> pd.DataFrame:
    """Stages that each used 110 tokens; a cost of -1 is a stage that has asked no model."""
    pipeline = Pipeline.beside([box(n, "anthropic:x" if n < "c" else "scripted:y") for n in costs])
    records = {}
    for name, cost in costs.items():
        asked = cost != -1
        records[name] = StageRecord(
            name=name,
            state="succeeded" if asked else "skipped",
            model="anthropic:x" if name < "c" else "scripted:y",
            turns=2 * asked,
            tokens=Tokens(input=100 * asked, cache_read=10 * asked),
            cost_usd=cost if asked else None,
            unpriced=cost is None,
            started_at=1.0,
            finished_at=3.0,
        )
    return frames.stages_frame(RunRecord(id="r", spec=pipeline.run_spec(), created_at=0, stages=records))


def events(*bodies: tuple[str, Any]) -> list[Event]:
    """Events of stages."""
    return [Event(seq=n, run="r", at=float(n), stage=s, body=body) for n, (s, body) in enumerate(bodies, 1)]


def call(cost: float | None, status: int = 200, tokens: int = 7) -> ModelCall:
    """A model call."""
    return ModelCall(
        request="r",
        model="m",
        source="live",
        status=status,
        tokens=Tokens(output=tokens),
        cost_usd=cost,
        duration_s=1,
    )


def test_costs_and_tokens_of_stages() -> None:
    """By model; one that has asked nothing costs nothing."""
    frame = stages(a=0.5, b=0.25, c=0.0, d=-1)
    assert frame.voidbox.kind == "stages"
    assert frame.voidbox.cost() == 0.75
    assert frame.voidbox.tokens() == 330
    by = frame.voidbox.by("model")
    assert list(by.index) == ["anthropic:x", "scripted:y"]
    assert list(by["cost_usd"]) == [0.75, 0.0]
    assert list(by["stages"]) == [2, 2]
    assert list(by["tokens"]) == [220, 110]
    assert frame.voidbox.by("stage", "state").loc[("d", "skipped"), "turns"] == 0


def test_a_price_that_is_not_known_is_not_left_out() -> None:
    """The sum is not a number, of its group alone."""
    frame = stages(a=0.5, b=None, c=0.25)
    assert math.isnan(frame.voidbox.cost())
    by = frame.voidbox.by("model")
    assert math.isnan(by.loc["anthropic:x", "cost_usd"])
    assert by.loc["scripted:y", "cost_usd"] == 0.25
    told = frames.events_frame(events(("a", call(0.5)), ("a", call(None)), ("b", call(None, 529, 0))))
    assert math.isnan(told.voidbox.cost())
    by = told.voidbox.by("stage")
    assert math.isnan(by.loc["a", "cost_usd"])
    assert by.loc["b", "cost_usd"] == 0, "a refused call used nothing"


def test_events_by_stage_type_and_model() -> None:
    """And a part of a frame is a frame."""
    told = events(
        ("a", AgentText(text="x")), ("a", ToolCall(id="1", name="bash")), ("a", call(0.5)), ("b", call(0.25))
    )
    frame = frames.events_frame(told)
    assert frame.voidbox.cost() == 0.75
    assert frame.voidbox.by("stage").loc["a"].to_dict() == {
        "events": 3, "turns": 1, "tool_calls": 1, "tokens": 7, "cost_usd": 0.5,
    }  # fmt: skip
    assert frame.voidbox.by("type").loc["model_call", "tokens"] == 14
    assert frame.voidbox.by("model").loc["m", "cost_usd"] == 0.75
    assert frame[frame["stage"] == "b"].voidbox.cost() == 0.25


def test_telemetry_connections_and_denials() -> None:
    """Means and peaks; bytes and refusals; how often."""
    counters = dict.fromkeys(("disk_total_kb", "disk_used_kb", "net_rx_bytes", "net_tx_bytes", "processes"), 0)
    samples = [
        Telemetry(cpu=cpu, load1=0, memory_total_kb=9, memory_used_kb=used, uptime_s=1, disk_read_bytes=read,
                  disk_write_bytes=0, **counters)
        for cpu, used, read in ((0.5, 5, 10), (1.0, 3, 30))
    ]  # fmt: skip
    by = frames.telemetry_frame(events(*(("a", s) for s in samples))).voidbox.by("stage").loc["a"]
    assert (by["cpu_mean"], by["cpu_max"], by["memory_kb_max"], by["disk_read_bytes"]) == (0.75, 1.0, 5, 30)
    out = [
        Egress(host="pypi.org", port=443, verdict=verdict, bytes_in=5)  # type: ignore[arg-type]
        for verdict in ("allowed", "denied")
    ]
    by = frames.egress_frame(events(*(("a", e) for e in out))).voidbox.by("host").loc["pypi.org"]
    assert (by["connections"], by["refused"], by["bytes_in"]) == (2, 1, 10)
    denied = [Denied(rule="commands", subject="nc", message="no", count=3)] * 2
    assert (
        frames.denials_frame(events(*(("a", d) for d in denied))).voidbox.by("rule").loc["commands", "denied"] == 6
    )


def test_nothing_at_all() -> None:
    """Empty frames have empty groups and cost nothing."""
    for frame in (frames.events_frame([]), frames.telemetry_frame([]), frames.egress_frame([])):
        assert frame.voidbox.by("stage").empty
    assert frames.events_frame([]).voidbox.cost() == 0


def test_what_cannot_be_said_is_one_sentence() -> None:
    """Another frame, another column, another question."""
    with pytest.raises(AttributeError, match="not one of a run's"):
        _ = pd.DataFrame({"x": [1]}).voidbox
    frame = stages(a=0.5)
    with pytest.raises(UserError, match="no column 'stag' to group by; it has stage, state"):
        frame.voidbox.by("stag")
    with pytest.raises(UserError, match="Name the columns"):
        frame.voidbox.by()
    with pytest.raises(UserError, match="telemetry has no tokens and no cost"):
        frames.telemetry_frame([]).voidbox.cost()


def test_pandas_is_not_imported_for_it() -> None:
    """`%load_ext` and imports cost what they did; the accessor comes with the first frame."""
    code = (
        "import sys, voidbox_lab.api, voidbox_lab.observe.frames as f; assert 'pandas' not in sys.modules; "
        "import pandas as pd; assert not hasattr(pd.DataFrame, 'voidbox'); f.events_frame([]); "
        "assert hasattr(pd.DataFrame, 'voidbox')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
