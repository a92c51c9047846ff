"""A run as a pure state machine: inputs in, commands out. No I/O, no clock, no tasks.

The driver (`runner`) carries out the commands and feeds back what happened. The invariants, which
hold for any order of inputs whatever (tests/engine/test_machine.py):

- a stage is launched at most once, and only after everything it needs has succeeded;
- a terminal state stays, and no stage goes backwards;
- a stage that fails takes down only the stages that need it; they are skipped;
- once every launched stage has ended, the run has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from voidbox_lab.spec import TERMINAL, RunSpec, RunState, StageState, Trouble
from voidbox_lab.spec.events import RunChanged, StageChanged

_ORDER: Mapping[str, int] = {"queued": 0, "booting": 1, "provisioning": 2, "running": 3, "collecting": 4}
Progress = Literal["booting", "provisioning", "running", "collecting"]
End = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class Begin:
    """Input: the run may start."""


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
    trouble: Trouble | None = None


@dataclass(frozen=True)
class Cancel:
    """Input: somebody asked for the end of the run."""

    trouble: Trouble


Input = Begin | Moved | Ended | Cancel


@dataclass(frozen=True)
class Launch:
    """Command: start the stage; `Ended` must follow, whatever happens."""

    stage: str


@dataclass(frozen=True)
class Interrupt:
    """Command: make a launched stage end soon. It may have ended already."""

    stage: str


@dataclass(frozen=True)
class Record:
    """Command: write this event. `stage` is None for the run itself."""

    stage: str | None
    body: StageChanged | RunChanged


Command = Launch | Interrupt | Record


@dataclass(frozen=True)
class Machine:
    """The state of one run. `step` gives the next one."""

    needs: Mapping[str, tuple[str, ...]]
    """Stage to the stages it needs, in declared (topological) order."""
    run: RunState = "queued"
    stages: Mapping[str, StageState] = field(default_factory=dict)
    launched: frozenset[str] = frozenset()
    cancel: Trouble | None = None
    troubles: Mapping[str, Trouble] = field(default_factory=dict)
    """Why stages did not succeed, in the order it happened."""

    @classmethod
    def of(cls, spec: RunSpec) -> Machine:
        """The machine of a run that has not begun."""
        needs = {s.box.name: s.needs for s in spec.stages}
        return cls(needs=needs, stages=dict.fromkeys(needs, "queued"))

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.run in TERMINAL

    @property
    def at_work(self) -> tuple[str, ...]:
        """Stages that were launched and have not ended."""
        return tuple(n for n in self.needs if n in self.launched and self.stages[n] not in TERMINAL)


def step(machine: Machine, given: Input) -> tuple[Machine, tuple[Command, ...]]:
    """The machine after `given`, and what is to be done now, in order.

    An input that does not fit (a stage that was not launched, an end after the end) changes nothing:
    it is late news, not an error.
    """
    match given:
        case Begin():
            if machine.run != "queued":
                return machine, ()
            machine = replace(machine, run="running")
            return _settle(machine, [Record(None, RunChanged(state="running"))])
        case Moved(stage, state):
            if stage not in machine.at_work or _ORDER[state] <= _ORDER[machine.stages[stage]]:
                return machine, ()
            return _enter(machine, stage, state), (Record(stage, StageChanged(state=state)),)
        case Ended(stage, state, output, trouble):
            if stage not in machine.at_work:
                return machine, ()
            machine = _enter(machine, stage, state)
            if trouble is not None:
                machine = _blame(machine, stage, trouble)
            return _settle(machine, [Record(stage, StageChanged(state=state, output=output, trouble=trouble))])
        case Cancel(trouble):
            if machine.over or machine.cancel is not None:
                return machine, ()
            machine = replace(machine, cancel=trouble)
            return _settle(machine, [Interrupt(stage) for stage in machine.at_work])


def _enter(machine: Machine, stage: str, state: StageState) -> Machine:
    return replace(machine, stages={**machine.stages, stage: state})


def _blame(machine: Machine, stage: str, trouble: Trouble) -> Machine:
    return replace(machine, troubles={**machine.troubles, stage: trouble})


def _settle(machine: Machine, commands: list[Command]) -> tuple[Machine, tuple[Command, ...]]:
    """Launch, skip or cancel every stage whose time has come; end the run after its last stage."""
    if machine.run == "queued" and machine.cancel is None:
        return machine, tuple(commands)
    for stage, needs in machine.needs.items():
        if stage in machine.launched or machine.stages[stage] in TERMINAL:
            continue
        lost = next((n for n in needs if machine.stages[n] in TERMINAL - {"succeeded"}), None)
        if machine.cancel is not None:
            machine = _enter(machine, stage, "cancelled")
            commands.append(Record(stage, StageChanged(state="cancelled", trouble=machine.cancel)))
        elif lost is not None:
            root = machine.troubles.get(lost)
            trouble = Trouble(
                kind=root.kind if root else "command",
                message=f"Stage {stage!r} was skipped: it needs {lost!r}, which did not succeed.",
                cause="needs-failed",
            )
            machine = _blame(machine, stage, trouble)
            machine = _enter(machine, stage, "skipped")
            commands.append(Record(stage, StageChanged(state="skipped", trouble=trouble)))
        elif all(machine.stages[n] == "succeeded" for n in needs):
            machine = replace(machine, launched=machine.launched | {stage})
            commands.append(Launch(stage))
    states = set(machine.stages.values())
    if states <= TERMINAL:
        machine, body = _finish(machine, states)
        commands.append(Record(None, body))
    return machine, tuple(commands)


def _finish(machine: Machine, states: set[StageState]) -> tuple[Machine, RunChanged]:
    state: RunState = "succeeded"
    trouble = None
    # Cancelled wins: whoever cancels a run does not want to read that it failed on the way down.
    if "cancelled" in states:
        state, trouble = "cancelled", machine.cancel
    elif "failed" in states:
        state, trouble = "failed", next(iter(machine.troubles.values()), None)
    return replace(machine, run=state), RunChanged(state=state, trouble=trouble)
