"""What runs do besides running: budgets, retries, failure domains, merges, cache, pause, resume, commands."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.engine.doubles import FakeExit, says
from tests.engine.lab import at, box, chain, open_lab
from voidbox_lab.engine import Capacity
from voidbox_lab.engine.rest import interrupt
from voidbox_lab.errors import UserError
from voidbox_lab.spec import (
    MAX_OUTPUT,
    Budget,
    CachedFrom,
    Merge,
    Pipeline,
    Policy,
    Retry,
    RunSpec,
    Stage,
    Tokens,
    Trouble,
)
from voidbox_lab.spec.events import ModelCall, Queued, StageChanged
from voidbox_lab.spec.mapping import expand, item_file

pytestmark = pytest.mark.anyio
BROKEN = [("err", b"boom\n"), ("exit", FakeExit(code=3))]
DIED = Trouble(kind="provider", message="it died", cause="daemon-died")


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    """`async with lab(stage=script, …) as it`."""
    return partial(open_lab, tmp_path)


def call(tokens: int = 10, cost_usd: float | None = 0.0) -> ModelCall:
    return ModelCall(
        request="q", model="m", source="live", status=200, duration_s=0.1,
        tokens=Tokens(input=tokens), cost_usd=cost_usd,
    )  # fmt: skip


def states(record: Any) -> dict[str, str]:
    return {name: stage.state for name, stage in record.stages.items()}


def fan(*, reduce: Any = "json") -> RunSpec:
    """``a | [b, c] | d``."""
    branches = Pipeline.beside([Pipeline.of(box("b")), Pipeline.of(box("c"))], reduce=reduce)
    return Pipeline.of(box("a")).then(branches).then(Pipeline.of(box("d"))).run_spec()


async def test_a_fan_out_merges_in_declared_order(lab: Any) -> None:
    async with lab(b=[("sleep", 0.2), *says(result='{"x": 1}')], c=says(result="plain")) as it:
        record = await it.run(fan())
        assert record.state == "succeeded"
        used = next(used for used, argv, _ in it.boxes.execs if argv[-1] == "d")
        assert json.loads(used.files["/workspace/input/merged.json"]) == [{"x": 1}, "plain"]
        assert used.files["/workspace/input/c.md"] == b"plain"


async def test_a_named_reducer(lab: Any) -> None:
    async with lab(b=says(result="yes"), c=says(result="no")) as it:
        await it.run(fan(reduce="text"))
        used = next(used for used, argv, _ in it.boxes.execs if argv[-1] == "d")
        assert used.files["/workspace/input/merged.md"] == b"## b\n\nyes\n\n## c\n\nno"


async def test_a_run_that_ends_in_a_fan_out_answers_with_all(lab: Any) -> None:
    async with lab(b=says(result="1"), c=says(result="2")) as it:
        spec = Pipeline.beside([Pipeline.of(box("b")), Pipeline.of(box("c"))]).run_spec()
        assert (await it.run(spec)).result == '["1", "2"]'


async def test_a_branch_that_fails_leaves_the_others_results(lab: Any) -> None:
    spec = RunSpec(
        stages=(
            Stage(box=box("b", on_failure="continue")), Stage(box=box("c")),
            Stage(box=box("d"), needs=("b", "c")),
        )
    )  # fmt: skip
    async with lab(b=BROKEN, c=says(result="kept")) as it:
        record = await it.run(spec)
        assert (record.state, states(record)) == ("succeeded", {"b": "failed", "c": "succeeded", "d": "succeeded"})
        used = next(used for used, argv, _ in it.boxes.execs if argv[-1] == "d")
        assert json.loads(used.files["/workspace/input/merged.json"]) == [None, "kept"]
        assert "/workspace/input/b.md" not in used.files


async def test_a_reducer_that_does_not_fit_is_the_stages_failure(lab: Any) -> None:
    async with lab(b=says(result="no object"), c=says(result="{}")) as it:
        record = await it.run(fan(reduce="object"))
        assert (record.stages["d"].trouble.kind, record.stages["d"].trouble.cause) == ("command", "reduce")


async def test_a_retry_gets_a_fresh_box_and_says_so(lab: Any) -> None:
    spec = RunSpec(stages=(Stage(box=box("one", retry=Retry(n=2, backoff_s=0.05))),))
    async with lab(one=BROKEN) as it:
        record = await it.runner.submit(spec)
        await it.until(record.id, at("one", "retrying"))
        it.scripts["one"] = says(result="at last")
        record = await it.until(record.id, lambda r: r.state == "succeeded")
        assert (record.result, record.stages["one"].attempts, it.boxes.opened) == ("at last", 2, 2)
        assert record.stages["one"].trouble is None
        bodies = [e.body for e in await it.events(record.id) if isinstance(e.body, StageChanged)]
        assert [(b.state, b.attempt) for b in bodies if b.attempt or b.state == "retrying"] == [
            ("queued", 1), ("retrying", None), ("queued", 2),
        ]  # fmt: skip


async def test_a_spent_budget_stops_the_stage_and_its_box(lab: Any) -> None:
    spec = RunSpec(stages=(Stage(box=box("one", budget=Budget(tokens=15))), Stage(box=box("two"))))
    async with lab(one=[*says("thinking"), ("sleep", 60)]) as it:
        record = await it.runner.submit(spec)
        await it.until(record.id, at("one", "running"))
        it.sessions.jobs["one"].metered(call(10))
        it.sessions.jobs["one"].metered(call(10))
        record = await it.until(record.id, lambda r: r.state == "failed")
        trouble = record.stages["one"].trouble
        assert (trouble.kind, trouble.limit, trouble.value, trouble.source) == ("limit", "tokens", 15, "stage")
        assert record.stages["one"].tokens.total == 20
        assert record.stages["two"].state == "succeeded"


async def test_a_spent_run_budget_skips_what_waits(lab: Any) -> None:
    spec = chain("one", "two", budget=Budget(usd=0.5))
    async with lab(one=[*says("thinking"), ("sleep", 60)]) as it:
        record = await it.runner.submit(spec)
        await it.until(record.id, at("one", "running"))
        it.sessions.jobs["one"].metered(call(cost_usd=0.6))
        record = await it.until(record.id, lambda r: r.state == "failed")
        assert (states(record), record.trouble.source) == ({"one": "failed", "two": "skipped"}, "run")


@pytest.mark.parametrize("whose", ["stage", "run"])
async def test_seconds_are_a_budget_too(lab: Any, whose: str) -> None:
    budget = Budget(seconds=0.3)
    one = box("one", budget=budget if whose == "stage" else Budget())
    spec = RunSpec(stages=(Stage(box=one),), budget=budget if whose == "run" else Budget())
    async with lab(one=[("sleep", 60)]) as it:
        record = await it.run(spec)
        trouble = record.stages["one"].trouble
        assert (trouble.kind, trouble.cause, trouble.limit, trouble.source) == (
            "limit",
            "budget",
            "seconds",
            whose,
        )


async def test_cancel_lets_go_of_the_model_first_and_of_the_box_last(lab: Any) -> None:
    async with lab(one=[*says("so far"), ("sleep", 60)]) as it:
        record = await it.runner.submit(chain("one"))
        await it.until(record.id, at("one", "running"))
        for _ in range(3):
            await it.runner.cancel(record.id)
        assert await it.runner.finished(record.id, 5)
        assert it.boxes.log == ["model", "processes", "box"]
        assert (await it.runner.cancel(record.id)).state == "cancelled"


async def test_an_earlier_result_is_taken_and_labelled(lab: Any) -> None:
    async with lab(a=says(result="alpha")) as it:
        first = await it.run(chain("a", "b"))
        again = await it.run(chain("a", "b"))
        assert (it.boxes.opened, again.result) == (2, "b done")
        assert again.stages["a"].cached == CachedFrom(run=first.id, stage="a")
        assert (again.stages["a"].output, again.stages["a"].box) == ("alpha", None)
        changed = RunSpec(stages=(Stage(box=box("a")), Stage(box=box("b", vcpus=2), needs=("a",))))
        third = await it.run(changed)
        assert it.boxes.opened == 3, "only what changed runs"
        assert (bool(third.stages["a"].cached), bool(third.stages["b"].cached)) == (True, False)
        fresh = await it.run(chain("a", "b", fresh=True))
        assert it.boxes.opened == 5
        assert not any(s.cached for s in fresh.stages.values())


async def test_what_is_not_the_same_is_not_taken(lab: Any) -> None:
    async with lab() as it:
        one, two = await it.runner.artifacts.put(b"1"), await it.runner.artifacts.put(b"2")
        for spec in (
            RunSpec(stages=(Stage(box=box("a")),)),
            RunSpec(stages=(Stage(box=box("a")),), inputs={"x": one}),
            RunSpec(stages=(Stage(box=box("a")),), inputs={"x": two}),
            RunSpec(stages=(Stage(box=box("a")),), inputs={"y": two}),
            RunSpec(stages=(Stage(box=box("a", memory_mb=300)),)),
        ):
            assert (await it.run(spec)).stages["a"].cached is None
        # The name, the budget and the time-out of a stage are not seen from inside.
        same = box("other", prompt="do a", budget=Budget(tokens=9), timeout_s=9)
        assert (await it.run(RunSpec(stages=(Stage(box=same),)))).stages["other"].cached is not None


async def test_what_reads_the_network_is_never_taken(lab: Any) -> None:
    """Neither kept nor found: the network may say something else by now."""
    async with lab() as it:
        policies = (Policy.allow("pypi.org:443"), Policy(network="monitored"), Policy())
        for policy, cached in [(policy, n and policy == Policy()) for policy in policies for n in (0, 1)]:
            record = await it.run(RunSpec(stages=(Stage(box=box("a", policy=policy)),)))
            assert bool(record.stages["a"].cached) is bool(cached), policy


async def test_a_failure_is_not_remembered(lab: Any) -> None:
    async with lab(one=BROKEN) as it:
        assert (await it.run(chain("one"))).state == "failed"
        it.scripts["one"] = says(result="well")
        again = await it.run(chain("one"))
        assert (again.result, again.stages["one"].cached) == ("well", None)


async def test_a_pause_keeps_what_follows_from_starting(lab: Any) -> None:
    async with lab(a=[("sleep", 0.2), *says(result="alpha")]) as it:
        record = await it.runner.submit(chain("a", "b"))
        await it.until(record.id, at("a", "running"))
        await it.runner.pause(record.id)
        await it.until(record.id, at("a", "succeeded"))
        await anyio.sleep(0.1)
        record = await it.runner.store.get_run(record.id)
        assert (record.state, states(record)["b"], it.boxes.opened) == ("paused", "queued", 1)
        await it.runner.resume(record.id)
        assert await it.runner.finished(record.id, 5)
        assert (await it.runner.store.get_run(record.id)).result == "b done"


async def test_a_pause_holds_what_waits_for_room(lab: Any) -> None:
    spec = RunSpec(stages=(Stage(box=box("a")), Stage(box=box("b"))), fresh=True)
    async with lab(Capacity(memory_mb=700, vcpus=16), a=[("sleep", 0.2), *says()]) as it:
        record = await it.runner.submit(spec)
        await it.until(record.id, at("a", "running"))
        await it.runner.pause(record.id)
        await it.until(record.id, at("a", "succeeded"))
        await anyio.sleep(0.1)
        assert it.boxes.opened == 1, "there was room, and the run is paused"
        await it.runner.cancel(record.id)
        assert await it.runner.finished(record.id, 5)


async def test_runs_take_turns(lab: Any) -> None:
    """A run of one stage does not wait for all of a run of many."""
    many = RunSpec(stages=tuple(Stage(box=box(f"m{i}")) for i in range(12)))
    slow = {f"m{i}": [("sleep", 0.1), *says()] for i in range(12)}
    async with lab(Capacity(memory_mb=700, vcpus=16), **slow) as it:
        first = await it.runner.submit(many)
        await it.until(first.id, at("m0", "running"))
        second = await it.run(chain("late"))
        done = sum(s == "succeeded" for s in states(await it.runner.store.get_run(first.id)).values())
        assert done <= 6, f"{done} of the other run's stages went before it"
        waits = [e.body for e in await it.events(second.id) if isinstance(e.body, Queued)]
        assert waits
        assert waits[0].ahead <= 1
        assert await it.runner.finished(first.id, 10)


async def test_a_run_goes_on_where_its_daemon_died(tmp_path: Path) -> None:
    """The store as the daemon left it: two stages done, one at work, one waiting."""
    async with open_lab(tmp_path, a=says(result="alpha"), c=[("sleep", 60)]) as it:
        record = await it.runner.submit(chain("a", "b", "c", "d"))
        await it.until(record.id, at("c", "running"))
        it.sessions.jobs["c"].metered(call(7))
        await it.runner.journal.flush()
        (tmp_path / "killed").mkdir()
        left = await it.runner.store.get_run(record.id)
        # What kill -9 leaves is the store; see tests/daemon/test_life.py for the kill itself.
        events = await it.events(record.id)
        await it.runner.cancel(record.id)
        assert await it.runner.finished(record.id, 5)
    async with open_lab(tmp_path / "killed") as it:
        store = it.runner.store
        await store.create_run(record.id, left.spec, at=left.created_at)
        from voidbox_lab.store import Entry

        await store.append(record.id, [Entry(e.body, e.stage, e.at) for e in events])
        await interrupt(it.runner.journal, await store.get_run(record.id), DIED)
        assert (await store.get_run(record.id)).state == "interrupted"
        await it.runner.resume(record.id)
        assert await it.runner.finished(record.id, 5)
        record = await store.get_run(record.id)
        assert (record.state, it.boxes.opened) == ("succeeded", 2)
        assert (record.stages["a"].output, record.stages["c"].attempts) == ("alpha", 2)
        assert record.stages["c"].tokens.total == 7, "what it spent before counts"
        with pytest.raises(UserError, match="has ended"):
            await it.runner.resume(record.id)


async def test_a_command_needs_no_model_and_reads_what_came_before(lab: Any) -> None:
    count = box("count", command=("wc", "-c"))
    spec = RunSpec(stages=(Stage(box=box("a")), Stage(box=count, needs=("a",), stdin_from="a")))
    async with lab(a=says(result="alpha"), **{"-c": [("out", b"5\n"), ("out", b"bytes\n")]}) as it:
        record = await it.run(spec)
        assert (record.result, record.stages["count"].model) == ("5\nbytes\n", None)
        _, argv, options = it.boxes.execs[1]
        assert (argv, options["stdin"], set(options["env"])) == (("wc", "-c"), b"alpha", {"TRACEPARENT"})
        assert it.sessions.count == 1, "a command has no session"


async def test_a_command_that_fails(lab: Any) -> None:
    async with lab(x=[("out", b"half\n"), ("exit", FakeExit(code=7))]) as it:
        record = await it.run(RunSpec(stages=(Stage(box=box("c", command=("cmd", "x"))),)))
        assert (record.stages["c"].trouble.kind, record.stages["c"].trouble.exit_code) == ("command", 7)


async def test_a_long_answer_is_an_artifact_and_reaches_the_next_stage_whole(lab: Any) -> None:
    long = "x" * (MAX_OUTPUT + 1000)
    async with lab(a=says(result=long)) as it:
        record = await it.run(chain("a", "b"))
        kept = record.stages["a"]
        assert (len(kept.output), kept.output_file.size) == (MAX_OUTPUT, len(long))
        assert it.boxes.execs[1][0].files["/workspace/input/a.md"] == long.encode()
        again = await it.run(chain("a", "b", "c"))
        assert (again.stages["a"].cached.run, again.stages["a"].output_file) == (record.id, kept.output_file)


async def test_an_answer_of_control_characters_is_an_artifact_too(lab: Any) -> None:
    async with lab(a=says(result="\x01" * (MAX_OUTPUT - 1))) as it:
        kept = (await it.run(chain("a"))).stages["a"]
        assert (kept.state, kept.output_file.size) == ("succeeded", MAX_OUTPUT - 1)


async def test_a_pool_bounds_what_is_at_work_at_once(lab: Any) -> None:
    names = [f"s{i}" for i in range(6)]
    spec = RunSpec(stages=tuple(Stage(box=box(n), pool="p") for n in names), pools={"p": 2})
    async with lab(**{n: [("sleep", 0.05), *says()] for n in names}) as it:
        assert (await it.run(spec)).state == "succeeded"
        assert it.boxes.most == 2


async def test_the_box_of_a_stage_at_work_can_be_had(lab: Any) -> None:
    async with lab(one=[("sleep", 60)]) as it:
        record = await it.runner.submit(chain("one"))
        await it.until(record.id, at("one", "running"))
        assert it.runner.box(record.id, "one") is it.boxes.boxes_[0]
        with pytest.raises(UserError, match="no box"):
            it.runner.box(record.id, "two")
        await it.runner.cancel(record.id)
        assert await it.runner.finished(record.id, 5)
        with pytest.raises(UserError, match="no box"):
            it.runner.box(record.id, "one")


def test_a_merge_names_what_is_needed() -> None:
    with pytest.raises(ValueError, match="merges other stages"):
        Stage(box=box("d"), needs=("a",), merge=Merge(of=("a", "b")))


async def test_a_run_at_rest_gets_a_driver_or_an_end_and_never_both(lab: Any) -> None:
    async with lab(a=[("sleep", 0.1), *says()]) as it:
        for _ in range(5):
            run = f"run-{it.boxes.opened}"
            await it.runner.store.create_run(run, chain("a", fresh=True), at=1)
            await interrupt(it.runner.journal, await it.runner.store.get_run(run), DIED)
            opened = it.boxes.opened

            async def resume(run: str = run) -> None:
                with suppress(UserError):
                    await it.runner.resume(run)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(resume)
                tasks.start_soon(it.runner.cancel, run)
            assert await it.runner.finished(run, 5)
            assert (await it.runner.store.get_run(run)).state == "cancelled"
            assert it.boxes.opened - opened <= 1


async def test_an_answer_that_came_too_late_is_nobodys_input(lab: Any) -> None:
    a = box("a", budget=Budget(tokens=15), on_failure="continue")
    spec = RunSpec(stages=(Stage(box=a), Stage(box=box("b"), needs=("a",))))
    async with lab(a=[("sleep", 0.2), *says(result="late")]) as it:
        record = await it.runner.submit(spec)
        await it.until(record.id, at("a", "running"))
        # As if metered with the answer: the stage is told to stop and has answered already.
        it.runner._active[record.id].scopes.pop("a")
        it.sessions.jobs["a"].metered(call(20))
        record = await it.until(record.id, lambda r: r.state == "succeeded")
        assert (record.stages["a"].state, record.stages["a"].output) == ("failed", "late")
        used = next(used for used, argv, _ in it.boxes.execs if argv[-1] == "b")
        assert not used.files
        unbounded = RunSpec(stages=(Stage(box=box("a")),))
        assert (await it.run(unbounded)).stages["a"].cached is None, "a failure is no earlier result"


async def test_a_result_whose_bytes_are_gone_is_made_again(lab: Any) -> None:
    async with lab(a=says(result="x" * (MAX_OUTPUT + 1))) as it:
        first = await it.run(chain("a"))
        await it.runner.artifacts.remove(first.stages["a"].output_file.digest)
        again = await it.run(chain("a", "b"))
        assert (again.state, again.stages["a"].cached) == ("succeeded", None)


async def test_half_a_surrogate_reaches_nobody(lab: Any) -> None:
    odd = [("out", b'["\\ud83d", 1]\n')]
    spec = Pipeline.beside([Pipeline.of(box("b", command=("b", "x"))), Pipeline.of(box("c"))])
    async with lab(x=odd) as it:
        record = await it.run(spec.then(Pipeline.of(box("d"))).run_spec())
        assert record.state == "succeeded", record.trouble
        used = next(used for used, argv, _ in it.boxes.execs if argv[-1] == "d")
        assert json.loads(used.files["/workspace/input/merged.json"]) == [["?", 1], "c done"]


def test_an_input_may_not_take_the_name_of_an_answer() -> None:
    file = item_file(b"1")
    with pytest.raises(ValueError, match=r"'a\.md'"):
        Stage(box=box("b"), needs=("a",), inputs={"a.md": file})


def test_a_map_over_one_item_answers_with_an_array_too() -> None:
    for n in (1, 2):
        spec = expand(box("m"), [item_file(b"%d" % i) for i in range(n)], 1).run_spec()
        assert isinstance(spec.result, Merge)
