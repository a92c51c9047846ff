"""The run as a state machine, driven by hypothesis in any order of inputs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox_lab.engine.machine import (
    Begin,
    Cancel,
    Command,
    Ended,
    Interrupt,
    Launch,
    Machine,
    Moved,
    Record,
    step,
)
from voidbox_lab.spec import TERMINAL, Model, RunSpec, Stage, Trouble, VoidBoxSpec

FAILED = Trouble(kind="provider", message="it broke", cause="test")
STOP = Trouble(kind="cancelled", message="stop")


def spec_of(needs: list[list[int]]) -> RunSpec:
    model = Model.parse("scripted:x")
    return RunSpec(
        stages=tuple(
            Stage(
                box=VoidBoxSpec(name=f"s{i}", prompt="p", model=model),
                needs=tuple(f"s{n}" for n in sorted(set(ns))),
            )
            for i, ns in enumerate(needs)
        )
    )


@st.composite
def dags(draw: st.DrawFn) -> RunSpec:
    n = draw(st.integers(1, 7))
    return spec_of([draw(st.lists(st.integers(0, i - 1), max_size=3)) if i else [] for i in range(n)])


def run(machine: Machine, *inputs: object) -> tuple[Machine, list[Command]]:
    out: list[Command] = []
    for given_ in inputs:
        machine, commands = step(machine, given_)  # type: ignore[arg-type]
        out += commands
    return machine, out


def inputs(names: list[str]) -> st.SearchStrategy[object]:
    stage = st.sampled_from([*names, "nobody"])
    return st.one_of(
        st.just(Begin()),
        st.builds(Moved, stage, st.sampled_from(["booting", "provisioning", "running", "collecting"])),
        st.builds(
            lambda s, e: Ended(s, e, trouble=FAILED if e == "failed" else None),
            stage,
            st.sampled_from(["succeeded", "failed", "cancelled"]),
        ),
        st.just(Cancel(STOP)),
    )


@settings(max_examples=300)
@given(st.data())
def test_invariants_hold_for_any_order_of_inputs(data: st.DataObject) -> None:
    spec = data.draw(dags())
    machine = Machine.of(spec)
    order = ["queued", "booting", "provisioning", "running", "collecting"]
    launched: set[str] = set()
    for given_ in data.draw(st.lists(inputs(list(machine.needs)), max_size=60)):
        before = machine
        machine, commands = step(machine, given_)  # type: ignore[arg-type]
        for command in commands:
            if isinstance(command, Launch):
                assert command.stage not in launched, "launched twice"
                launched.add(command.stage)
                assert all(machine.stages[n] == "succeeded" for n in machine.needs[command.stage])
        for name, state in before.stages.items():
            after = machine.stages[name]
            if state in TERMINAL:
                assert after == state, "a terminal state changed"
            elif after not in TERMINAL:
                assert order.index(after) >= order.index(state), "a stage went backwards"
            if after != state:
                assert [c.body.state for c in commands if isinstance(c, Record) and c.stage == name] == [after]
        if before.over:
            assert (machine, commands) == (before, ())
        assert machine.launched == launched
        if (machine.run != "queued" or machine.cancel) and not machine.at_work:
            assert machine.over, "nothing is at work and the run goes on"
        if machine.over:
            assert set(machine.stages.values()) <= TERMINAL


@settings(max_examples=200)
@given(st.data())
def test_a_driver_that_ends_every_launched_stage_ends_the_run(data: st.DataObject) -> None:
    """Every started stage ends, so the run does; and only what needed a failed stage was skipped."""
    spec = data.draw(dags())
    machine, commands = run(Machine.of(spec), Begin())
    at_work = [c.stage for c in commands if isinstance(c, Launch)]
    failed = set()
    while at_work:
        stage = data.draw(st.sampled_from(at_work))
        at_work.remove(stage)
        end = data.draw(st.sampled_from(["succeeded", "failed"]))
        failed |= {stage} if end == "failed" else set()
        machine, commands = step(machine, Ended(stage, end, trouble=FAILED if end == "failed" else None))  # type: ignore[arg-type]
        at_work += [c.stage for c in commands if isinstance(c, Launch)]
    assert machine.over
    assert machine.run == ("failed" if failed else "succeeded")

    def tainted(name: str) -> bool:
        return any(n in failed or tainted(n) for n in machine.needs[name])

    for name, state in machine.stages.items():
        assert (state == "skipped") == tainted(name)


def test_a_failure_spares_siblings() -> None:
    machine, commands = run(Machine.of(spec_of([[], [], [0], [1]])), Begin())
    assert [c.stage for c in commands if isinstance(c, Launch)] == ["s0", "s1"]
    machine, commands = run(machine, Ended("s0", "failed", trouble=FAILED))
    assert dict(machine.stages) == {"s0": "failed", "s1": "queued", "s2": "skipped", "s3": "queued"}
    machine, commands = run(machine, Ended("s1", "succeeded", output="x"), Ended("s3", "succeeded"))
    assert (machine.run, machine.troubles["s2"].kind) == ("failed", "provider")
    end = commands[-1]
    assert isinstance(end, Record)
    assert end.body.trouble == FAILED


def test_cancel_interrupts_what_runs_and_cancels_what_waits() -> None:
    machine, commands = run(Machine.of(spec_of([[], [0]])), Begin(), Moved("s0", "running"), Cancel(STOP))
    assert Interrupt("s0") in commands
    assert machine.stages["s1"] == "cancelled"
    assert not machine.over, "s0 still has to close its box"
    machine, commands = run(machine, Cancel(STOP), Ended("s0", "cancelled", trouble=STOP))
    assert machine.run == "cancelled"
    assert not [c for c in commands if isinstance(c, Interrupt)]


def test_cancel_before_the_beginning() -> None:
    machine, commands = run(Machine.of(spec_of([[]])), Cancel(STOP), Begin())
    assert machine.run == "cancelled"
    assert not [c for c in commands if isinstance(c, Launch)]
