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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

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
from voidbox_lab.engine.plan import Plan, plans_of
from voidbox_lab.engine.verdicts import Spent
from voidbox_lab.spec import (
    TERMINAL,
    Budget,
    RunRecord,
    RunSpec,
    RunState,
    StageState,
    Trouble,
)
from voidbox_lab.spec.events import RunChanged, StageChanged

_ORDER: Mapping[str, int] = {"queued": 0, "booting": 1, "provisioning": 2, "running": 3, "collecting": 4}


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

    # What follows from the above, kept so that it is not counted again for each input.
    unended: int = 0
    """Stages that have not ended."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """How many of the stages that each one needs have not ended."""
    taken: Mapping[str, int] = field(default_factory=dict)
    """Slots of each pool whose stages are at work."""
    waiting: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By pool, stages that lack nothing but a slot, in declared order."""
    total: Spent = Spent()  # noqa: RUF009 - frozen
    """All that is in `spent`."""

    @classmethod
    def of(cls, spec: RunSpec, record: RunRecord | None = None) -> Machine:
        """The machine of a run that has not begun; with its `record`, of one that is to go on.

        What had ended stays; what was at work is queued again.
        """
        plans = plans_of(spec)
        machine = cls(plans=plans, pools=spec.pools, budget=spec.budget, stages=dict.fromkeys(plans, "queued"))
        if record is None:
            return machine._counted()
        kept = {name: stage for name, stage in record.stages.items() if name in plans}
        return replace(
            machine,
            stages={**machine.stages, **{n: s.state for n, s in kept.items() if s.state in TERMINAL}},
            attempts={n: s.attempts for n, s in kept.items()},
            spent={n: Spent(None if s.unpriced else s.cost_usd or 0.0, s.tokens.total) for n, s in kept.items()},
            troubles={n: s.trouble for n, s in kept.items() if s.trouble and s.state in TERMINAL},
        )._counted()

    def _counted(self) -> Machine:
        ended = {name for name, state in self.stages.items() if state in TERMINAL}
        return replace(
            self,
            unended=len(self.stages) - len(ended),
            missing={name: len(set(plan.needs) - ended) for name, plan in self.plans.items()},
            total=sum(self.spent.values(), Spent()),
        )

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.run in TERMINAL

    def spent_by(self, stage: str | None = None) -> Spent:
        """What a stage, or the whole run, has spent."""
        if stage is not None:
            return self.spent.get(stage, Spent())
        return self.total

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
            machine = _ended(machine, given, commands)
            return _settle(machine, commands, _touched(machine, stage))
        case Metered(stage, spent):
            if stage not in machine.plans:
                return machine, ()
            spending = {**machine.spent, stage: machine.spent_by(stage) + spent}
            machine = replace(machine, spent=spending, total=machine.total + spent)
            machine = _bounded(_bounded(machine, commands, stage), commands)
            return _settle(machine, commands, () if machine.stop is None else None)
        case Rested(stage):
            if stage not in machine.resting:
                return machine, ()
            return _settle(replace(machine, resting=machine.resting - {stage}), commands, (stage,))
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
    plan, attempt = machine.plans[stage], machine.attempts.get(stage, 1)
    machine = replace(machine, at_work=machine.at_work - {stage}, doomed=doomed)
    if plan.pool is not None:
        machine = replace(machine, taken={**machine.taken, plan.pool: machine.taken[plan.pool] - 1})
    if machine.stop is not None and (state != "succeeded" or machine.stop.kind == "limit"):
        # It was told to end; what it said while it was ending is not the reason. A spent budget binds late answers
        # too, or the same run would fail or succeed by a millisecond.
        trouble, state = machine.stop, "cancelled" if machine.stop.kind == "cancelled" else "failed"
    elif doom is not None:
        state, trouble = "failed", doom
    elif state == "cancelled":
        # Nobody of ours cancelled it, so this is a failure of whoever did.
        state, trouble = "failed", trouble or verdicts.LOST
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
    missing = dict(machine.missing)
    for name in plan.needed_by:
        missing[name] -= 1
    machine = replace(_enter(machine, stage, state), unended=machine.unended - 1, missing=missing)
    if trouble is not None:
        machine = _blame(machine, stage, trouble)
    body = StageChanged(
        state=state,
        output=given.output,
        output_file=given.output_file,
        files=dict(given.files) if state == "succeeded" else {},
        cached=given.cached if state == "succeeded" else None,
        trouble=trouble,
    )
    commands.append(Record(stage, body))
    return machine


def _touched(machine: Machine, stage: str) -> tuple[str, ...]:
    """The stages whose time may have come since `stage` has ended, for good or for a rest."""
    plan, state = machine.plans[stage], machine.stages[stage]
    after: tuple[str, ...] = ()
    if state in TERMINAL:
        after = tuple(n for n in plan.needed_by if state != "succeeded" or not machine.missing[n])
    if plan.pool is None:
        return after
    free = machine.pools.get(plan.pool, 1) - machine.taken[plan.pool]
    return after + machine.waiting.get(plan.pool, ())[:free]


def _settle(
    machine: Machine, commands: list[Command], touched: Iterable[str] | None = None
) -> tuple[Machine, tuple[Command, ...]]:
    """Launch, skip or cancel every stage whose time has come; end the run after its last stage.

    Args:
        touched: the stages whose time may have come by the input; None: any. An input costs what it touches, or a
            run of a thousand stages would look at a thousand of them a thousand times.
    """
    if machine.run == "queued" and machine.stop is None:
        return machine, tuple(commands)
    if touched is None:
        machine, touched = replace(machine, waiting={}), machine.plans
    if look := [(machine.plans[stage].place, stage) for stage in touched]:
        machine = _look(machine, look, commands)
    if not machine.unended:
        commands += [Hold(False)] if machine.run == "paused" else []
        machine, body = _finish(machine)
        commands.append(Record(None, body))
    return machine, tuple(commands)


def _look(machine: Machine, look: list[tuple[int, str]], commands: list[Command]) -> Machine:
    """Each stage of `look`, and what needs those that are skipped, in declared order."""
    stages, at_work, left = dict(machine.stages), set(machine.at_work), machine.unended
    attempts, troubles = dict(machine.attempts), dict(machine.troubles)
    missing, taken, resting = dict(machine.missing), dict(machine.taken), set(machine.resting)
    turned_away: dict[str, list[str]] = {}
    seen: set[str] = set()
    heapify(look)
    while look:
        _, stage = heappop(look)
        plan = machine.plans[stage]
        if stages[stage] in TERMINAL or stage in at_work or stage in seen:
            continue
        seen.add(stage)
        end: StageState | None = None
        if machine.stop is not None:
            end, trouble = "cancelled" if machine.stop.kind == "cancelled" else "skipped", machine.stop
        elif lost := _lost(machine, stages, plan):
            end, trouble = "skipped", verdicts.skipped(stage, lost, troubles.get(lost))
        elif over := verdicts.overspent(plan.budget, machine.spent_by(stage), stage):
            end, trouble = "failed", over  # spent before its daemon died
        if end is not None:
            stages[stage], troubles[stage] = end, trouble
            commands.append(Record(stage, StageChanged(state=end, trouble=trouble)))
            left -= 1
            resting.discard(stage)
            for name in plan.needed_by:
                missing[name] -= 1
                heappush(look, (machine.plans[name].place, name))
        elif machine.run != "running" or stage in resting or missing[stage]:
            continue
        elif plan.pool is not None and taken.get(plan.pool, 0) >= machine.pools.get(plan.pool, 1):
            turned_away.setdefault(plan.pool, []).append(stage)
        else:
            at_work.add(stage)
            attempts[stage] = attempts.get(stage, 0) + 1
            stages[stage] = "queued"
            if plan.pool:
                taken[plan.pool] = taken.get(plan.pool, 0) + 1
            commands.append(Record(stage, StageChanged(state="queued", attempt=attempts[stage])))
            commands.append(Launch(stage))
    return replace(
        machine,
        stages=stages,
        at_work=frozenset(at_work),
        resting=frozenset(resting),
        unended=left,
        attempts=attempts,
        troubles=troubles,
        missing=missing,
        taken=taken,
        waiting=_waiting(machine, seen, turned_away),
    )


def _waiting(machine: Machine, seen: set[str], turned_away: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """`machine.waiting` without those of `seen`, which are at its pools' fronts, and with those turned away."""
    waiting = {}
    for pool in {*machine.waiting, *turned_away}:
        before, more = machine.waiting.get(pool, ()), turned_away.get(pool)
        rest = before[next((n for n, name in enumerate(before) if name not in seen), len(before)) :]
        # Sorted only where there is news: of a thousand that wait, mostly one goes.
        waiting[pool] = tuple(sorted((*more, *rest), key=lambda n: machine.plans[n].place)) if more else rest
    return waiting


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
