"""Connections and denials as frames: a row each, with types that sums need; empty ones where nothing was."""

from __future__ import annotations

from voidbox_lab.observe.frames import (
    DENIAL_COLUMNS,
    EGRESS_COLUMNS,
    STAGE_COLUMNS,
    denials_frame,
    egress_frame,
    stages_frame,
)
from voidbox_lab.spec import InputFile, RunSpec, Stage, VoidBoxSpec
from voidbox_lab.spec.events import Denied, Egress, Event, StageChanged
from voidbox_lab.store.fold import rebuild

BODIES = [
    Egress(host="pypi.org", port=443, verdict="allowed", rule="pypi.org:443", bytes_out=10, bytes_in=20),
    Denied(rule="commands", subject="/usr/bin/nc", message="nc is not allowed.", count=3),
    Egress(host="example.org", port=80, verdict="denied", rule="allowlist", reason="not in the allowlist"),
    StageChanged(state="succeeded", output="x", files={"a.csv": InputFile(digest="sha256:" + "0" * 64, size=5)}),
]
EVENTS = [Event(seq=n, run="r", at=100.0 + n, stage="a", body=body) for n, body in enumerate(BODIES, 1)]


def test_connections_and_denials_are_rows() -> None:
    """In their order, with everything that the events say."""
    egress = egress_frame(EVENTS)
    assert list(egress.columns) == list(EGRESS_COLUMNS)
    assert list(egress["host"]) == ["pypi.org", "example.org"]
    assert egress["bytes_in"].sum() == 20
    assert egress.index.tz is not None
    assert list(egress[egress["verdict"] == "denied"]["reason"]) == ["not in the allowlist"]
    denials = denials_frame(EVENTS)
    assert list(denials.columns) == list(DENIAL_COLUMNS)
    assert denials[["stage", "rule", "count"]].to_numpy().tolist() == [["a", "commands", 3]]


def test_of_nothing_there_are_empty_frames_with_columns() -> None:
    assert list(egress_frame([]).columns) == list(EGRESS_COLUMNS)
    assert len(denials_frame([])) == 0


def test_a_record_counts_them() -> None:
    """As a fold of the events, and in the frame of stages."""
    spec = RunSpec(stages=(Stage(box=VoidBoxSpec(name="a", command=("true",))),))
    record = rebuild("r", spec, EVENTS, at=100.0)
    stage = record.stages["a"]
    assert (stage.denied, stage.connections, stage.bytes_out, stage.bytes_in) == (3, 2, 10, 20)
    frame = stages_frame(record)
    assert list(frame.columns) == list(STAGE_COLUMNS)
    assert (frame.loc["a", "denied"], frame.loc["a", "connections"]) == (3, 2)
