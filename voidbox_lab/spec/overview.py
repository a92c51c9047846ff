"""All runs and boxes of a daemon at a glance: what a panel shows and asks for again every few seconds.

Small on purpose: no spec, no output, no transcript. Those are in a run's record and its events.
"""

from __future__ import annotations

from pydantic import Field

from voidbox_lab.spec.api import Health
from voidbox_lab.spec.base import Frozen, Name
from voidbox_lab.spec.model import ModelSource
from voidbox_lab.spec.run import BoxFacts, Isolation, RunState, StageState

MAX_AT_WORK = 4
"""Most stages that a glance at a run names."""
MAX_SAMPLES = 60
"""Telemetry samples of a box that are kept for its curve; a box sends one every second or two."""


class RunGlance(Frozen):
    """A run in one line."""

    id: str
    title: str
    """Its name; without one, its first stages."""
    state: RunState
    created_at: float
    """UNIX time, seconds."""
    finished_at: float | None
    stages: dict[StageState, int]
    """How many there are in each state; states without stages are left out."""
    at_work: tuple[Name, ...] = Field(max_length=MAX_AT_WORK)
    """Stages that have a box or are getting one; the first few in declared order."""
    isolation: tuple[Isolation, ...]
    """Of the boxes it has had."""
    sources: tuple[ModelSource, ...]
    """Where its models' answers came from."""
    tokens: int
    cost_usd: float
    """Of the calls that have a price."""
    unpriced: bool
    """Whether calls without one came on top."""
    trouble: str | None
    """Why it did not succeed, in a sentence."""


class BoxGlance(Frozen):
    """The box of a stage that is at work."""

    run: str
    stage: Name
    state: StageState
    facts: BoxFacts
    cpu: tuple[float, ...] = Field(max_length=MAX_SAMPLES)
    """Busy share of all its vCPUs, 0 to 1, oldest first."""
    memory: tuple[float, ...] = Field(max_length=MAX_SAMPLES)
    """Used share of its memory, 0 to 1, as the guest counts it; at the same times."""


class Room(Frozen):
    """What this host gives to boxes, and how much of it they have."""

    memory_mb: int
    memory_used_mb: int
    """Promised to open boxes, with what the host needs for each."""
    vcpus: int
    vcpus_used: int
    spares: int
    """Boxes kept ready for the next stages."""
    spares_mb: int
    """Host memory they hold, in MiB."""


class Spent(Frozen):
    """What the runs begun since a moment have used until now."""

    since: float
    """UNIX time, seconds."""
    runs: int
    tokens: int
    cost_usd: float
    """Of the calls that have a price."""
    unpriced: int
    """Runs with calls that have none."""


class Overview(Frozen):
    """The daemon, its runs and its boxes now."""

    health: Health
    room: Room
    spent: Spent
    runs: tuple[RunGlance, ...]
    """Those in progress, then the newest of the others; each newest first."""
    boxes: tuple[BoxGlance, ...]
