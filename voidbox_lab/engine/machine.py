"""A run as a pure state machine: inputs in, commands out. No I/O, no clock, no tasks.

The driver (`runner`) carries out the commands and feeds back what happened. The invariants, which
hold for any order of inputs whatever, restarts included (tests/engine/test_machine.py):

- a stage is at work at most once at a time, and only after what it needs has come to an end that lets it;
- a terminal state stays;
- a stage that fails takes down only the stages that need it, and those only if its failure domain says so;
- what is left of a budget is never negative, and once nothing is left nothing of it is launched;
- no pool holds more stages at work than it has slots;
- once every launched stage has ended and the run is not paused, something is launched or the run has ended.

Not for what is said when it stops (`verdicts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from voidbox_lab.engine import verdicts
from voidbox_lab.engine.moves import (
    Begin,
    Cancel,
    Command,
    Ended,
    Hold,
    Input,
    Interrupt,
    Launch,
    Metered,
    Moved,
    Pause,
    Record,
    Rest,
    Rested,
    Resume,
    TimeUp,
)
from voidbox_lab.engine.verdicts import Spent
from voidbox_lab.spec import (
    TERMINAL,
    Budget,
    OnFailure,
    Retry,
    RunRecord,
    RunSpec,
    RunState,
    StageState,
    Trouble,
)
from voidbox_lab.spec.events import RunChanged, StageChanged

_ORDER: Mapping[str, int] = {"queued": 0, "booting": 1, "provisioning": 2, "running": 3, "collecting": 4}


@dataclass(frozen=True)
class Plan:
    """What of a stage's spec decides when it is launched and what its end means."""

    needs: tuple[str, ...] = ()
    on_failure: OnFailure = "fail"
    retry: Retry | None = None
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    pool: str | None = None


@dataclass(frozen=True)
class Machine:
    """The state of one run. `step` gives the next one."""

    plans: Mapping[str, Plan]
    """By stage, in declared (topological) order."""
    pools: Mapping[str, int] = field(default_factory=dict)
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    run: RunState = "queued"
    stages: Mapping[str, StageState] = field(default_factory=dict)
    at_work: frozenset[str] = frozenset()
    """Stages that were launched and have not ended."""
    resting: frozenset[str] = frozenset()
    """Stages between two attempts."""
    attempts: Mapping[str, int] = field(default_factory=dict)
    """How often each stage was launched."""
    spent: Mapping[str, Spent] = field(default_factory=dict)
    doomed: Mapping[str, Trouble] = field(default_factory=dict)
    """Stages at work that were interrupted for a spent budget: they fail, whatever they still bring."""
    stop: Trouble | None = None
    """Why nothing more is launched: cancelled, or the run's budget is spent."""
    troubles: Mapping[str, Trouble] = field(default_factory=dict)
    """Why stages did not succeed, in the order it happened."""

    @classmethod
    def of(cls, spec: RunSpec, record: RunRecord | None = None) -> Machine:
        """The machine of a run that has not begun; with its `record`, of one that is to go on.

        What had ended stays; what was at work is queued again.
        """
        plans = {
            s.box.name: Plan(s.needs, s.box.on_failure, s.box.retry, s.box.budget, s.pool) for s in spec.stages
        }
        machine = cls(plans=plans, pools=spec.pools, budget=spec.budget, stages=dict.fromkeys(plans, "queued"))
        if record is None:
            return machine
        kept = {name: stage for name, stage in record.stages.items() if name in plans}
        return replace(
            machine,
            stages={**machine.stages, **{n: s.state for n, s in kept.items() if s.state in TERMINAL}},
            attempts={n: s.attempts for n, s in kept.items()},
            spent={n: Spent(None if s.unpriced else s.cost_usd or 0.0, s.tokens.total) for n, s in kept.items()},
            troubles={n: s.trouble for n, s in kept.items() if s.trouble and s.state in TERMINAL},
        )

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.run in TERMINAL

    def spent_by(self, stage: str | None = None) -> Spent:
        """What a stage, or the whole run, has spent."""
        if stage is not None:
            return self.spent.get(stage, Spent())
        return sum(self.spent.values(), Spent())

    def left(self, stage: str | None = None) -> Budget:
        """What is left of a stage's or the run's budget in dollars and tokens: None unbounded, never negative."""
        budget = self.budget if stage is None else self.plans[stage].budget
        return verdicts.left(budget, self.spent_by(stage))


def step(machine: Machine, given: Input) -> tuple[Machine, tuple[Command, ...]]:
    """The machine after `given`, and what is to be done now, in order.

    An input that does not fit (a stage that was not launched, an end after the end) changes nothing:
    it is late news, not an error.
    """
    if machine.over:
        return machine, ()
    commands: list[Command] = []
    match given:
        case Begin():
            if machine.run != "queued":
                return machine, ()
            machine = replace(machine, run="running")
            commands.append(Record(None, RunChanged(state="running")))
            return _settle(_bounded(machine, commands), commands)
        case Moved(stage, state):
            if stage not in machine.at_work or _ORDER[state] <= _ORDER.get(machine.stages[stage], 0):
                return machine, ()
            return _enter(machine, stage, state), (Record(stage, StageChanged(state=state)),)
        case Ended(stage):
            if stage not in machine.at_work:
                return machine, ()
            return _settle(_ended(machine, given, commands), commands)
        case Metered(stage, spent):
            if stage not in machine.plans:
                return machine, ()
            machine = replace(machine, spent={**machine.spent, stage: machine.spent_by(stage) + spent})
            machine = _bounded(_bounded(machine, commands, stage), commands)
            return _settle(machine, commands)
        case Rested(stage):
            if stage not in machine.resting:
                return machine, ()
            return _settle(replace(machine, resting=machine.resting - {stage}), commands)
        case TimeUp():
            return _settle(_stopped(machine, verdicts.time_up(machine.budget), commands), commands)
        case Pause():
            if machine.run != "running" or machine.stop is not None:
                return machine, ()
            return replace(machine, run="paused"), (Record(None, RunChanged(state="paused")), Hold(True))
        case Resume():
            if machine.run != "paused":
                return machine, ()
            machine = replace(machine, run="running")
            return _settle(machine, [Record(None, RunChanged(state="running")), Hold(False)])
        case Cancel(trouble):
            return _settle(_stopped(machine, trouble, commands), commands)


def _enter(machine: Machine, stage: str, state: StageState) -> Machine:
    return replace(machine, stages={**machine.stages, stage: state})


def _blame(machine: Machine, stage: str, trouble: Trouble) -> Machine:
    return replace(machine, troubles={**machine.troubles, stage: trouble})


def _stopped(machine: Machine, trouble: Trouble, commands: list[Command]) -> Machine:
    """Launch nothing more and interrupt what is at work. The first reason counts, a cancel before all."""
    if machine.stop is not None and not (trouble.kind == "cancelled" and machine.stop.kind != "cancelled"):
        return machine
    commands += [Interrupt(stage, trouble) for stage in machine.plans if stage in machine.at_work]
    return replace(machine, stop=trouble)


def _bounded(machine: Machine, commands: list[Command], stage: str | None = None) -> Machine:
    """Stop the stage, or the run, whose budget is spent."""
    budget = machine.budget if stage is None else machine.plans[stage].budget
    trouble = verdicts.overspent(budget, machine.spent_by(stage), stage)
    if trouble is None:
        return machine
    if stage is None:
        return _stopped(machine, trouble, commands)
    if stage not in machine.at_work or stage in machine.doomed:
        return machine
    commands.append(Interrupt(stage, trouble))
    return replace(machine, doomed={**machine.doomed, stage: trouble})


def _ended(machine: Machine, given: Ended, commands: list[Command]) -> Machine:
    stage, state, trouble = given.stage, given.state, given.trouble
    doom = machine.doomed.get(stage)
    doomed = {n: t for n, t in machine.doomed.items() if n != stage}
    machine = replace(machine, at_work=machine.at_work - {stage}, doomed=doomed)
    if machine.stop is not None and state != "succeeded":
        # It was told to end; what it said while it was ending is not the reason.
        trouble, state = machine.stop, "cancelled" if machine.stop.kind == "cancelled" else "failed"
    elif doom is not None:
        state, trouble = "failed", doom
    elif state == "cancelled":
        # Nobody of ours cancelled it, so this is a failure of whoever did.
        state, trouble = "failed", trouble or verdicts.LOST
    plan, attempt = machine.plans[stage], machine.attempts.get(stage, 1)
    if (
        state == "failed"
        and machine.stop is None
        and plan.retry is not None
        and attempt <= plan.retry.n
        and verdicts.is_worth_another_try(trouble)
    ):
        pause = plan.retry.pause_s(attempt)
        commands.append(Record(stage, StageChanged(state="retrying", trouble=trouble)))
        commands.append(Rest(stage, pause))
        return replace(_enter(machine, stage, "retrying"), resting=machine.resting | {stage})
    machine = _enter(machine, stage, state)
    if trouble is not None:
        machine = _blame(machine, stage, trouble)
    body = StageChanged(
        state=state,
        output=given.output,
        output_file=given.output_file,
        cached=given.cached if state == "succeeded" else None,
        trouble=trouble,
    )
    commands.append(Record(stage, body))
    return machine


def _settle(machine: Machine, commands: list[Command]) -> tuple[Machine, tuple[Command, ...]]:
    """Launch, skip or cancel every stage whose time has come; end the run after its last stage."""
    if machine.run == "queued" and machine.stop is None:
        return machine, tuple(commands)
    stages, at_work = dict(machine.stages), set(machine.at_work)
    attempts, troubles = dict(machine.attempts), dict(machine.troubles)
    taken: dict[str, int] = {}
    for name in at_work:
        if pool := machine.plans[name].pool:
            taken[pool] = taken.get(pool, 0) + 1
    left = 0
    for stage, plan in machine.plans.items():
        if stages[stage] in TERMINAL:
            continue
        left += 1
        if stage in at_work:
            continue
        end: StageState | None = None
        if machine.stop is not None:
            end, trouble = "cancelled" if machine.stop.kind == "cancelled" else "skipped", machine.stop
        elif lost := _lost(machine, stages, plan):
            end, trouble = "skipped", verdicts.skipped(stage, lost, troubles.get(lost))
        if end is not None:
            stages[stage], troubles[stage] = end, trouble
            commands.append(Record(stage, StageChanged(state=end, trouble=trouble)))
            left -= 1
        elif (
            machine.run == "running"
            and stage not in machine.resting
            and (plan.pool is None or taken.get(plan.pool, 0) < machine.pools.get(plan.pool, 1))
            and all(stages[n] in TERMINAL for n in plan.needs)
        ):
            at_work.add(stage)
            attempts[stage] = attempts.get(stage, 0) + 1
            stages[stage] = "queued"
            if plan.pool:
                taken[plan.pool] = taken.get(plan.pool, 0) + 1
            commands.append(Record(stage, StageChanged(state="queued", attempt=attempts[stage])))
            commands.append(Launch(stage))
    machine = replace(machine, stages=stages, at_work=frozenset(at_work), attempts=attempts, troubles=troubles)
    if not left:
        commands += [Hold(False)] if machine.run == "paused" else []
        machine, body = _finish(machine)
        commands.append(Record(None, body))
    return machine, tuple(commands)


def _lost(machine: Machine, stages: Mapping[str, StageState], plan: Plan) -> str | None:
    """The first needed stage that ended without an output where one is required."""
    for need in plan.needs:
        ended_badly = stages[need] in TERMINAL and stages[need] != "succeeded"
        if ended_badly and machine.plans[need].on_failure != "continue":
            return need
    return None


def _finish(machine: Machine) -> tuple[Machine, RunChanged]:
    state: RunState = "succeeded"
    trouble = None
    blamed = [n for n, s in machine.stages.items() if s == "failed" and machine.plans[n].on_failure == "fail"]
    # Cancelled wins: whoever cancels a run does not want to read that it failed on the way down.
    if "cancelled" in machine.stages.values():
        state, trouble = "cancelled", machine.stop
    elif machine.stop is not None and any(s != "succeeded" for s in machine.stages.values()):
        state, trouble = "failed", machine.stop
    elif blamed:
        state, trouble = "failed", next((t for n, t in machine.troubles.items() if n in blamed), None)
    return replace(machine, run=state), RunChanged(state=state, trouble=trouble)
