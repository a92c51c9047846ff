"""The run as a state machine, played by a driver and a world that fails, cancels, pauses, overspends and dies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox_lab.engine.machine import Machine, step
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
from voidbox_lab.engine.verdicts import Spent, overspent
from voidbox_lab.spec import (
    TERMINAL,
    Budget,
    Model,
    Retry,
    RunRecord,
    RunSpec,
    Stage,
    Tokens,
    Trouble,
    VoidBoxSpec,
)
from voidbox_lab.spec.events import Event, ModelCall, RunChanged, StageChanged
from voidbox_lab.store import apply, new_record

FAILED = Trouble(kind="provider", message="it broke", cause="test")
USER = Trouble(kind="user", message="no such thing", cause="test")
STOP = Trouble(kind="cancelled", message="stop")


def spec_of(needs: list[list[int]], *, pools: dict[str, int] | None = None, **options: Any) -> RunSpec:
    """Stages s0, s1, … with what they need by number; `options` hold a list per field of a box, or `pool`."""
    run = {key: options.pop(key) for key in ("budget",) if key in options and isinstance(options[key], Budget)}
    stages = []
    for i, numbers in enumerate(needs):
        own = {key: values[i] for key, values in options.items() if values[i] is not None}
        pool = own.pop("pool", None)
        box = VoidBoxSpec(name=f"s{i}", prompt="p", model=Model.parse("scripted:x"), **own)
        stages.append(Stage(box=box, needs=tuple(f"s{n}" for n in sorted(set(numbers))), pool=pool))
    return RunSpec(stages=tuple(stages), pools=pools or {}, **run)


@st.composite
def runs(draw: st.DrawFn) -> RunSpec:
    """Any run of up to seven stages: any graph, failure domains, retries, budgets, pools."""
    n = draw(st.integers(1, 7))
    budgets = st.just(Budget()) | st.builds(
        Budget, tokens=st.none() | st.integers(1, 40), usd=st.none() | st.floats(0.1, 5)
    )

    def each(values: st.SearchStrategy[Any]) -> list[Any]:
        return [draw(values) for _ in range(n)]

    return spec_of(
        [draw(st.lists(st.integers(0, i - 1), max_size=3)) if i else [] for i in range(n)],
        pools={"p": draw(st.integers(1, 2))},
        on_failure=each(st.sampled_from(["fail", "skip", "continue"])),
        retry=each(st.none() | st.builds(Retry, n=st.integers(1, 2), backoff_s=st.just(0))),
        pool=each(st.sampled_from([None, "p"])),
        **({"budget": draw(budgets)} if draw(st.booleans()) else {"budget": each(budgets)}),
    )


class World:
    """A driver as dumb as can be, and a store: it carries out commands, keeps records, and checks invariants."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.machine = Machine.of(spec)
        self.record = new_record("r", spec, at=0)
        self.open: set[str] = set()
        self.resting: set[str] = set()
        self.launches: dict[str, int] = {}
        self.seq = 0
        self.held = False

    def tell(self, given: Input) -> tuple[Command, ...]:
        before = self.machine
        self.machine, commands = step(before, given)
        if before.over:
            assert (self.machine, commands) == (before, ()), "something happened after the end"
        changed: dict[str, list[str]] = {}
        for command in commands:
            match command:
                case Launch(stage):
                    self._launched(stage)
                case Rest(stage):
                    assert stage not in self.open
                    self.resting.add(stage)
                case Interrupt(stage):
                    assert stage in self.open, "what does not run cannot be interrupted"
                case Hold(held):
                    self.held = held
                case Record(stage, body):
                    self.keep(stage, body)
                    if stage is not None and isinstance(body, StageChanged):
                        changed.setdefault(stage, []).append(body.state)
        self.check(before, changed)
        return commands

    def _launched(self, stage: str) -> None:
        assert stage not in self.open, "a stage runs twice at once"
        assert stage not in self.resting, "a stage was launched while it rests"
        assert self.machine.run == "running"
        assert self.machine.stop is None
        left, budget = self.machine.spent_by(stage), self.machine.plans[stage].budget
        assert overspent(budget, left, stage) is None, "a stage was launched whose budget is overspent"
        for need in self.machine.plans[stage].needs:
            end = self.machine.stages[need]
            assert end == "succeeded" or (end in TERMINAL and self.machine.plans[need].on_failure == "continue")
        self.open.add(stage)
        self.launches[stage] = self.launches.get(stage, 0) + 1

    def keep(self, stage: str | None, body: Any) -> None:
        self.seq += 1
        self.record = apply(self.record, Event(seq=self.seq, run="r", at=self.seq, stage=stage, body=body))

    def check(self, before: Machine, changed: dict[str, list[str]]) -> None:
        machine = self.machine
        assert machine.at_work == self.open, "every stage that was started and has not ended is at work, no other"
        assert machine.resting <= self.resting
        for name, state in before.stages.items():
            now = machine.stages[name]
            assert state not in TERMINAL or now == state, "a terminal state changed"
            if now != state:
                assert changed[name][-1] == now, "a change was not recorded"
            assert self.record.stages[name].state == now, "the record says something else"
        assert self.record.state == machine.run
        for left in (machine.left(), *(machine.left(name) for name in machine.plans)):
            assert left.usd is None or left.usd >= 0
            assert left.tokens is None or left.tokens >= 0
        used = {pool: sum(machine.plans[n].pool == pool for n in self.open) for pool in self.spec.pools}
        for pool, slots in self.spec.pools.items():
            assert used[pool] <= slots
        ended = {name for name, state in machine.stages.items() if state in TERMINAL}
        assert machine.unended == len(machine.stages) - len(ended)
        assert machine.total == sum(machine.spent.values(), Spent()) or machine.total.usd == pytest.approx(
            sum((s.usd or 0 for s in machine.spent.values()), 0.0)
        )
        for name in machine.stages.keys() - ended - self.open - machine.resting:
            plan = machine.plans[name]
            assert machine.missing[name] == len(set(plan.needs) - ended)
            if machine.run == "running" and not machine.missing[name]:
                assert plan.pool is not None, "a stage was forgotten"
                assert used[plan.pool] == self.spec.pools[plan.pool], "a slot was forgotten"
        if machine.over:
            assert not self.open, "the run has ended and a box is open"
            assert set(machine.stages.values()) <= TERMINAL
        elif machine.run == "running" and not self.open:
            assert machine.resting, "nothing is at work, nothing rests, and the run goes on"
        if machine.over or machine.run == "running":
            assert not self.held, "stages are held in a run that is not paused"

    def die(self) -> None:
        """The daemon is killed; a new one puts the run to rest and resumes it from its record."""
        for stage, kept in self.record.stages.items():
            if kept.state not in TERMINAL:
                self.keep(stage, StageChanged(state="queued", trouble=FAILED))
        self.keep(None, RunChanged(state="interrupted", trouble=FAILED))
        self.open.clear()
        self.resting.clear()
        self.held = False
        self.machine = Machine.of(self.spec, self.record)
        self.tell(Begin())


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_invariants_hold_whatever_the_world_does(data: st.DataObject) -> None:
    world = World(data.draw(runs()))
    names = list(world.machine.plans)
    for _ in range(data.draw(st.integers(1, 40))):
        given_ = data.draw(_inputs(names))
        if given_ == "die":
            if world.machine.run not in {"queued", *TERMINAL}:
                world.die()
            continue
        if isinstance(given_, Ended):
            world.open.discard(given_.stage)
        if isinstance(given_, Rested):
            world.resting.discard(given_.stage)
        if isinstance(given_, Metered):
            if given_.stage not in world.record.stages:
                continue
            _meter(world, given_)
        world.tell(given_)


def _inputs(names: list[str]) -> st.SearchStrategy[Any]:
    stage = st.sampled_from([*names, "nobody"])
    ends = st.builds(
        lambda s, e, t: Ended(s, e, trouble=t if e == "failed" else None),
        stage,
        st.sampled_from(["succeeded", "failed", "cancelled"]),
        st.sampled_from([FAILED, USER]),
    )
    spent = st.builds(Spent, st.none() | st.floats(0, 2), st.integers(0, 20))
    return st.one_of(
        st.just(Begin()),
        st.builds(Moved, stage, st.sampled_from(["booting", "provisioning", "running", "collecting"])),
        ends,
        ends,
        st.builds(Metered, stage, spent),
        st.builds(Rested, stage),
        st.sampled_from([Pause(), Resume(), TimeUp(), Cancel(STOP), "die"]),
    )


def _meter(world: World, given_: Metered) -> None:
    call = ModelCall(
        request="q", model="m", source="live", status=200, duration_s=0,
        tokens=Tokens(input=given_.spent.tokens), cost_usd=given_.spent.usd,
    )  # fmt: skip
    world.keep(given_.stage, call)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_world_that_ends_every_stage_comes_to_an_end(data: st.DataObject) -> None:
    """Whatever fails, rests, dies or is paused on the way, the run ends, and ends as its failure domains say."""
    world = World(data.draw(runs()))
    world.tell(Begin())
    deaths = data.draw(st.integers(0, 2))
    for _ in range(200):
        if world.machine.over:
            break
        if deaths and data.draw(st.booleans()):
            deaths -= 1
            world.die()
            continue
        if data.draw(st.integers(0, 9)) == 0:
            world.tell(Pause())
            world.tell(Resume())
        if world.resting:
            stage = data.draw(st.sampled_from(sorted(world.resting)))
            world.resting.discard(stage)
            world.tell(Rested(stage))
        elif world.open:
            stage = data.draw(st.sampled_from(sorted(world.open)))
            world.open.discard(stage)
            end = data.draw(st.sampled_from(["succeeded", "failed"]))
            world.tell(Ended(stage, end, trouble=FAILED if end == "failed" else None))  # type: ignore[arg-type]
    machine = world.machine
    assert machine.over
    to_blame = [n for n, s in machine.stages.items() if s == "failed" and machine.plans[n].on_failure == "fail"]
    assert machine.run == ("failed" if to_blame else "succeeded")
    for name, count in world.launches.items():
        retry = machine.plans[name].retry
        assert count <= 1 + (retry.n if retry else 0) + 2, "more attempts than its retries and two deaths explain"

    def spared(name: str) -> bool:
        return machine.stages[name] == "succeeded" or machine.plans[name].on_failure == "continue"

    for name, state in machine.stages.items():
        assert (state == "skipped") == any(not spared(n) for n in machine.plans[name].needs)


def run(machine: Machine, *inputs: Input) -> tuple[Machine, list[Command]]:
    out: list[Command] = []
    for given_ in inputs:
        machine, commands = step(machine, given_)
        out += commands
    return machine, out


def launched(commands: list[Command]) -> list[str]:
    return [c.stage for c in commands if isinstance(c, Launch)]


def test_a_failure_spares_siblings() -> None:
    machine, commands = run(Machine.of(spec_of([[], [], [0], [1]])), Begin())
    assert launched(commands) == ["s0", "s1"]
    machine, commands = run(machine, Ended("s0", "failed", trouble=FAILED))
    assert dict(machine.stages) == {"s0": "failed", "s1": "queued", "s2": "skipped", "s3": "queued"}
    machine, commands = run(machine, Ended("s1", "succeeded", output="x"), Ended("s3", "succeeded"))
    assert (machine.run, machine.troubles["s2"].kind) == ("failed", "provider")
    end = commands[-1]
    assert isinstance(end, Record)
    assert end.body.trouble == FAILED


@pytest.mark.parametrize(
    ("domain", "after", "end"),
    [("fail", "skipped", "failed"), ("skip", "skipped", "succeeded"), ("continue", "queued", "succeeded")],
)
def test_failure_domains(domain: str, after: str, end: str) -> None:
    machine, _ = run(Machine.of(spec_of([[], [0]], on_failure=[domain, None])), Begin())
    machine, _ = run(machine, Ended("s0", "failed", trouble=FAILED))
    assert machine.stages["s1"] == after
    machine, _ = run(machine, Ended("s1", "succeeded"))
    assert machine.run == end


def test_a_retry_waits_longer_each_time_and_ends() -> None:
    spec = spec_of([[], [0]], retry=[Retry(n=2, backoff_s=3), None])
    machine, _ = run(Machine.of(spec), Begin())
    pauses = []
    for _ in range(2):
        machine, commands = run(machine, Ended("s0", "failed", trouble=FAILED))
        pauses += [c.seconds for c in commands if isinstance(c, Rest)]
        assert machine.stages["s0"] == "retrying"
        machine, commands = run(machine, Rested("s0"))
        assert launched(commands) == ["s0"]
    assert pauses == [3, 6]
    machine, _ = run(machine, Ended("s0", "failed", trouble=FAILED))
    assert (machine.run, machine.attempts["s0"], machine.stages["s1"]) == ("failed", 3, "skipped")


@pytest.mark.parametrize("trouble", [USER, Trouble(kind="limit", message="m", limit="memory", cause="memory")])
def test_what_would_fail_again_is_not_tried_again(trouble: Trouble) -> None:
    machine, _ = run(Machine.of(spec_of([[]], retry=[Retry(n=5)])), Begin())
    machine, _ = run(machine, Ended("s0", "failed", trouble=trouble))
    assert machine.run == "failed"


def test_a_spent_budget_stops_its_stage_and_no_other() -> None:
    spec = spec_of([[], []], budget=[Budget(tokens=10), None], retry=[Retry(n=3), None])
    machine, _ = run(Machine.of(spec), Begin(), Metered("s0", Spent(0.0, 10)))
    assert not machine.doomed, "spent to the last token is not overspent"
    machine, commands = run(machine, Metered("s0", Spent(0.0, 1)), Metered("s0", Spent(0.0, 5)))
    assert [c.stage for c in commands if isinstance(c, Interrupt)] == ["s0"]
    # Its answer came in time to be seen and too late to be paid: the budget binds.
    machine, commands = run(machine, Ended("s0", "succeeded", output="late"), Ended("s1", "succeeded"))
    record = next(c.body for c in commands if isinstance(c, Record) and c.stage == "s0")
    assert isinstance(record, StageChanged)
    assert record.trouble is not None
    assert (record.state, record.trouble.kind, record.trouble.cause, record.output) == (
        "failed", "limit", "budget", "late",
    )  # fmt: skip
    assert (machine.run, machine.stages["s1"]) == ("failed", "succeeded")


def test_a_spent_run_budget_stops_everything() -> None:
    machine, _ = run(Machine.of(spec_of([[], [], [0]], budget=Budget(usd=1.0))), Begin())
    machine, commands = run(machine, Metered("s0", Spent(0.6, 1)), Metered("s1", Spent(0.5, 1)))
    assert {c.stage for c in commands if isinstance(c, Interrupt)} == {"s0", "s1"}
    machine, _ = run(machine, Ended("s0", "cancelled"), Ended("s1", "succeeded"))
    assert dict(machine.stages) == {"s0": "failed", "s1": "failed", "s2": "skipped"}, "late answers count as late"
    assert (machine.run, machine.left().usd) == ("failed", 0.0)


def test_a_call_without_a_price_ends_a_budget_in_dollars() -> None:
    machine, _ = run(Machine.of(spec_of([[]], budget=[Budget(usd=9)])), Begin(), Metered("s0", Spent(None, 1)))
    assert "no known price" in machine.doomed["s0"].message


def test_cancel_interrupts_what_runs_and_cancels_what_waits() -> None:
    machine, commands = run(Machine.of(spec_of([[], [0]])), Begin(), Moved("s0", "running"), Cancel(STOP))
    assert Interrupt("s0", STOP) in commands
    assert machine.stages["s1"] == "cancelled"
    assert not machine.over, "s0 still has to close its box"
    machine, commands = run(machine, Cancel(STOP), Ended("s0", "cancelled", trouble=STOP))
    assert machine.run == "cancelled"
    assert not [c for c in commands if isinstance(c, Interrupt)]


def test_cancel_before_the_beginning() -> None:
    machine, commands = run(Machine.of(spec_of([[]])), Cancel(STOP), Begin())
    assert machine.run == "cancelled"
    assert not launched(commands)


def test_a_pause_holds_what_waits_and_lets_what_runs_end() -> None:
    machine, commands = run(Machine.of(spec_of([[], [0]])), Begin(), Pause(), Ended("s0", "succeeded"))
    assert Hold(True) in commands
    assert launched(commands) == ["s0"]
    assert machine.run == "paused"
    machine, commands = run(machine, Resume())
    assert (launched(commands), machine.run) == (["s1"], "running")
    assert Hold(False) in commands


def test_cancelling_a_paused_run_lets_go_of_what_it_holds() -> None:
    machine, _ = run(Machine.of(spec_of([[], [0]])), Begin(), Pause(), Cancel(STOP))
    machine, commands = run(machine, Ended("s0", "cancelled"))
    assert machine.run == "cancelled"
    assert Hold(False) in commands


def test_a_pool_holds_back_the_rest() -> None:
    machine, commands = run(Machine.of(spec_of([[]] * 4, pool=["p"] * 4, pools={"p": 2})), Begin())
    assert launched(commands) == ["s0", "s1"]
    machine, commands = run(machine, Ended("s1", "succeeded"))
    assert launched(commands) == ["s2"]


def test_a_resumed_run_goes_on_where_it_was() -> None:
    world = World(spec_of([[], [0], [1]]))
    world.tell(Begin())
    world.open.discard("s0")
    world.tell(Ended("s0", "succeeded", output="kept"))
    world.tell(Moved("s1", "running"))
    world.die()
    assert world.open == {"s1"}
    assert (world.launches, world.record.stages["s0"].output) == ({"s0": 1, "s1": 2}, "kept")
    assert isinstance(world.record, RunRecord)
