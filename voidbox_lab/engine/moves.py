"""The vocabulary between a run's state machine and its driver: inputs, what happened; commands, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from voidbox_lab.engine.verdicts import Spent
from voidbox_lab.spec import CachedFrom, InputFile, Trouble
from voidbox_lab.spec.events import RunChanged, StageChanged

Progress = Literal["booting", "provisioning", "running", "collecting"]
End = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class Begin:
    """Input: the run may start, or go on after its daemon died."""


@dataclass(frozen=True)
class Moved:
    """Input: a launched stage got on."""

    stage: str
    state: Progress


@dataclass(frozen=True)
class Ended:
    """Input: a launched stage is over, its box closed."""

    stage: str
    state: End
    output: str | None = None
    output_file: InputFile | None = None
    files: Mapping[str, InputFile] = field(default_factory=dict)
    cached: CachedFrom | None = None
    trouble: Trouble | None = None


@dataclass(frozen=True)
class Metered:
    """Input: a launched stage spent something."""

    stage: str
    spent: Spent


@dataclass(frozen=True)
class Rested:
    """Input: the pause before a stage's next attempt is over."""

    stage: str


@dataclass(frozen=True)
class TimeUp:
    """Input: the run's seconds are spent."""


@dataclass(frozen=True)
class Pause:
    """Input: launch nothing more for now. What is at work goes on."""


@dataclass(frozen=True)
class Resume:
    """Input: launch again."""


@dataclass(frozen=True)
class Cancel:
    """Input: somebody asked for the end of the run."""

    trouble: Trouble


Input = Begin | Moved | Ended | Metered | Rested | TimeUp | Pause | Resume | Cancel


@dataclass(frozen=True)
class Launch:
    """Command: start the stage; `Ended` must follow, whatever happens."""

    stage: str


@dataclass(frozen=True)
class Interrupt:
    """Command: make a launched stage end soon, for this reason. It may have ended already."""

    stage: str
    trouble: Trouble


@dataclass(frozen=True)
class Rest:
    """Command: send `Rested` after so many seconds."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Hold:
    """Command: keep stages that wait for room waiting, or let them go."""

    held: bool


@dataclass(frozen=True)
class Record:
    """Command: write this event. `stage` is None for the run itself."""

    stage: str | None
    body: StageChanged | RunChanged


Command = Launch | Interrupt | Rest | Hold | Record
