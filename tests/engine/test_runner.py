"""Runs end to end without a VM: order, failure domains, cancelling, limits, and nothing left open."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.engine.doubles import FakeExit, says
from tests.engine.lab import at, box, chain, open_lab
from voidbox_lab.box.trouble import first_error
from voidbox_lab.engine import Capacity, StageJob, provision, stage
from voidbox_lab.errors import BoxLost, LimitExceeded, ProviderError, UserError
from voidbox_lab.spec import InputFile, Policy, Retry, RunSpec, Skill, Stage
from voidbox_lab.spec.events import (
    AgentLog,
    AgentText,
    Denied,
    Notice,
    Queued,
    RunChanged,
    StageChanged,
    Telemetry,
    ToolCall,
)
from voidbox_lab.spec.tracing import traceparent

pytestmark = pytest.mark.anyio


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    """`async with lab(stage=script, …) as it`."""
    return partial(open_lab, tmp_path)


async def test_one_stage_from_queued_to_its_answer(lab: Any) -> None:
    async with lab(one=says("hel", "lo", result="42")) as it:
        record = await it.run(chain("one"))
        assert (record.state, record.result, record.trouble) == ("succeeded", "42", None)
        stage_record = record.stages["one"]
        assert stage_record.box is not None
        assert stage_record.box.isolation == "tcg"
        bodies = [e.body for e in await it.events(record.id)]
        assert [b.state for b in bodies if isinstance(b, StageChanged)] == [
            "queued", "booting", "provisioning", "running", "collecting", "succeeded",
        ]  # fmt: skip
        assert "".join(b.text for b in bodies if isinstance(b, AgentText)) == "hello"
        assert any(isinstance(b, Telemetry) for b in bodies)
        assert isinstance(bodies[0], RunChanged)
        assert isinstance(bodies[-1], RunChanged)


async def test_denials_and_a_looser_policy_are_told(lab: Any) -> None:
    denied = Denied(rule="syscalls.ptrace", subject="ptrace", message="No.", program="gdb", count=3)
    async with lab(one=[("denied", denied), *says(result="42")]) as it:
        loose = box("one", policy=Policy(syscalls=("ptrace", "bpf"), commands=("/usr/", "/workspace/")))
        run = RunSpec(stages=(Stage(box=loose), Stage(box=box("two"))))
        record = await it.run(run)
        bodies = [e.body for e in await it.events(record.id)]
        assert [b for b in bodies if isinstance(b, Denied)] == [denied]
        assert [b.message for b in bodies if isinstance(b, Notice)] == [
            "Stage 'one' runs with a looser policy than the default: system calls bpf, system calls ptrace, "
            "execution of files in /workspace/."
        ]


async def test_each_attempt_works_in_its_own_span_of_the_runs_trace(lab: Any) -> None:
    """What it starts finds it in the environment; a context that the spec gives a command is left alone."""
    async with lab(one=[("exit", FakeExit(code=1))]) as it:
        again = box("one", retry=Retry(n=1, backoff_s=0))
        told = box("two", command=("echo", "two"), env={"TRACEPARENT": "mine"})
        record = await it.run(RunSpec(stages=(Stage(box=again), Stage(box=told))))
        given = {}
        for used, _, options in it.boxes.execs:
            given.setdefault(used.name, []).append(options["env"]["TRACEPARENT"])
        assert given["one"] == [traceparent(record.id, "one", 1), traceparent(record.id, "one", 2)]
        assert given["two"] == ["mine"]


async def test_inputs_skills_and_token_reach_the_box(lab: Any) -> None:
    skill = Skill(name="adding", description="d", body="add\n")
    async with lab() as it:
        file: InputFile = await it.runner.artifacts.put(b"a,b\n")
        spec = RunSpec(stages=(Stage(box=box("one", skills=(skill,))),), inputs={"x.csv": file})
        assert (await it.run(spec)).state == "succeeded"
        used, argv, options = it.boxes.execs[0]
        assert used.files["/workspace/input/x.csv"] == b"a,b\n"
        assert b"add" in used.files["/home/agent/.claude/skills/adding/SKILL.md"]
        assert options["env"]["TOKEN"].startswith("token-run-")
        assert argv[1] == "do one"


async def test_a_later_stage_gets_the_answers_it_needs(lab: Any) -> None:
    async with lab(a=says(result="alpha")) as it:
        record = await it.run(chain("a", "b"))
        assert record.result == "b done"
        used, argv, _ = it.boxes.execs[1]
        assert used.files["/workspace/input/a.md"] == b"alpha"
        assert "/workspace/input/a.md" in argv[1]


async def test_a_failed_stage_takes_down_only_what_needs_it(lab: Any) -> None:
    broken = [("err", b"boom\n"), ("exit", FakeExit(code=3))]
    spec = RunSpec(
        stages=(
            Stage(box=box("bad")), Stage(box=box("good")),
            Stage(box=box("after-bad"), needs=("bad",)), Stage(box=box("after-good"), needs=("good",)),
        )
    )  # fmt: skip
    async with lab(bad=broken) as it:
        record = await it.run(spec)
        assert {n: s.state for n, s in record.stages.items()} == {
            "bad": "failed", "good": "succeeded", "after-bad": "skipped", "after-good": "succeeded",
        }  # fmt: skip
        assert record.state == "failed"
        assert record.trouble is not None
        assert (record.trouble.kind, record.trouble.exit_code) == ("command", 3)
        logs = [e.body.text for e in await it.events(record.id) if isinstance(e.body, AgentLog)]
        assert logs == ["boom"]


async def test_cancel_keeps_what_was_streamed_and_closes_the_box(lab: Any) -> None:
    async with lab(a=[*says("so far"), ("sleep", 60)]) as it:
        record = await it.runner.submit(chain("a", "b"))
        await it.until(record.id, at("a", "running"))
        await anyio.sleep(0.1)
        await it.runner.cancel(record.id)
        await it.runner.cancel(record.id)
        assert await it.runner.finished(record.id, 5)
        record = await it.runner.cancel(record.id)
        assert (record.state, record.stages["a"].state, record.stages["b"].state) == ("cancelled",) * 3
        assert record.stages["a"].trouble is not None
        assert record.stages["a"].trouble.kind == "cancelled"
        assert any(isinstance(e.body, AgentText) for e in await it.events(record.id))
        assert it.boxes.boxes_[0].closed


async def test_an_agent_past_its_time_is_a_time_limit(lab: Any) -> None:
    async with lab(one=[*says("thinking"), ("sleep", 60)]) as it:
        record = await it.run(RunSpec(stages=(Stage(box=box("one", timeout_s=0.2)),)))
        trouble = record.stages["one"].trouble
        assert trouble is not None
        assert (trouble.kind, trouble.cause) == ("limit", "time")
        assert "0.2 s" in trouble.message


async def test_a_guest_that_does_not_keep_its_own_time_is_stopped_by_the_host(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "GRACE_S", 0.1)

    async def never(self: object) -> None:
        await anyio.sleep(60)

    monkeypatch.setattr("tests.engine.doubles.FakeProcess.wait", never)
    async with lab() as it:
        record = await it.run(RunSpec(stages=(Stage(box=box("one", timeout_s=0.2)),)))
        assert record.trouble is not None
        assert (record.trouble.kind, record.trouble.cause) == ("limit", "time")


async def test_provisioning_has_a_bound_that_grows_with_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "PROVISION_S", 0.2)
    monkeypatch.setattr(provision, "PROVISION_RATE", 1000)
    (tmp_path / "data").write_bytes(bytes(1000))
    small = StageJob("r", Stage(box=box("one")), {}, {})
    large = StageJob("r", Stage(box=box("one")), {"data": tmp_path / "data"}, {"before": "text"})
    with provision.provisioning(large):
        await anyio.sleep(0.4)
    with pytest.raises(LimitExceeded, match="smaller inputs") as e, provision.provisioning(small):
        await anyio.sleep(5)
    assert (e.value.source, e.value.value) == ("default", 0.2)
    assert "timeout" not in e.value.message


async def test_a_lost_box_is_the_providers_trouble(lab: Any) -> None:
    async with lab(one=[*says("before"), ("lose", "qemu-died")]) as it:
        record = await it.run(chain("one"))
        assert record.trouble is not None
        assert (record.trouble.kind, record.trouble.cause) == ("provider", "qemu-died")


async def test_a_killed_agent_that_ran_out_of_memory(lab: Any) -> None:
    async with lab(one=[("exit", FakeExit(code=None, signal=9, oom=True))]) as it:
        record = await it.run(chain("one"))
        assert record.trouble is not None
        assert (record.trouble.kind, record.trouble.cause) == ("limit", "memory")


async def test_a_box_that_cannot_be_opened(lab: Any) -> None:
    async with lab() as it:
        it.boxes.fail = ProviderError("No QEMU.", cause="no-qemu")
        record = await it.run(chain("one"))
        assert (record.state, record.stages["one"].trouble.cause) == ("failed", "no-qemu")


async def test_a_fault_of_our_own_fails_the_stage_not_the_daemon(lab: Any) -> None:
    async with lab(one=[("out", b"this is not JSON, and this parser chokes on it\n")]) as it:
        record = await it.run(chain("one"))
        assert record.stages["one"].trouble.cause == "internal"
        assert (await it.run(chain("two"))).state == "succeeded"


async def test_an_agent_that_floods_is_stopped(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_OUTPUT_BYTES", 10_000)
    async with lab(one=[("err", b"x" * 3000)] * 5) as it:
        record = await it.run(chain("one"))
        assert (record.trouble.kind, record.trouble.cause) == ("limit", "output")


async def test_an_agent_without_a_model_is_the_providers_trouble(lab: Any) -> None:
    """The agent exits 1 because the model's server is down: the cause is reported, not the symptom."""
    async with lab(one=[("exit", FakeExit(code=1))]) as it:
        it.sessions.upstream = ProviderError("api.example.org cannot be reached.", cause="upstream")
        record = await it.run(chain("one"))
        assert (record.trouble.kind, record.trouble.cause) == ("provider", "upstream")


async def test_a_huge_tool_input_is_cut_visibly(lab: Any) -> None:
    line = json.dumps({"tool": "x" * 1_000_000}).encode() + b"\n"
    async with lab(one=[("out", line), *says(result="ok")]) as it:
        record = await it.run(chain("one"))
        calls = [e.body for e in await it.events(record.id) if isinstance(e.body, ToolCall)]
        assert calls[0].input["characters"] > 1_000_000
        assert record.state == "succeeded"


async def test_boxes_wait_for_memory_in_turn(lab: Any) -> None:
    names = [f"s{i}" for i in range(6)]
    spec = RunSpec(stages=tuple(Stage(box=box(n)) for n in names))
    slow = {n: [("sleep", 0.05), *says()] for n in names}
    async with lab(Capacity(memory_mb=1300, vcpus=16), **slow) as it:
        assert (await it.run(spec)).state == "succeeded"
        assert it.boxes.most == 2
        assert (it.admission.used_mb, it.admission.boxes) == (0, 0)


async def test_a_stage_that_waits_for_room_says_so_and_not_for_ever(lab: Any) -> None:
    spec = RunSpec(stages=(Stage(box=box("a")), Stage(box=box("b"))), fresh=True)
    async with lab(Capacity(memory_mb=700, vcpus=16), a=[("sleep", 1), *says()]) as it:
        it.admission._wait_s = 0.2
        record = await it.run(spec)
        waits = [(e.stage, e.body) for e in await it.events(record.id) if isinstance(e.body, Queued)]
        assert waits == [("b", Queued(ahead=0, message="needs 608 MiB, 92 MiB free, 0 in front"))]
        assert record.stages["a"].state == "succeeded"
        trouble = record.stages["b"].trouble
        assert (trouble.kind, trouble.cause, trouble.value, trouble.unit) == ("limit", "no-room", 0.2, "s")
        assert trouble.message.startswith("Stage 'b' found no room within 0.2 s (needs 608 MiB")


async def test_cancelling_a_stage_that_waits_for_memory(lab: Any) -> None:
    spec = RunSpec(stages=(Stage(box=box("a")), Stage(box=box("b"))), fresh=True)
    async with lab(Capacity(memory_mb=700, vcpus=16), a=[("sleep", 60)], b=[("sleep", 60)]) as it:
        record = await it.runner.submit(spec)
        await it.until(record.id, at("a", "running"))
        await it.runner.cancel(record.id)
        assert await it.runner.finished(record.id, 5)
        assert it.boxes.opened == 1
        assert it.admission.used_mb == 0


async def test_what_can_never_run_is_refused_at_once(lab: Any) -> None:
    async with lab() as it:
        with pytest.raises(UserError, match="no agent 'emacs'"):
            await it.runner.submit(RunSpec(stages=(Stage(box=box("one", agent="emacs")),)))
        with pytest.raises(UserError, match="MiB of memory"):
            await it.runner.submit(RunSpec(stages=(Stage(box=box("one", memory_mb=100_000)),)))
        ghost = InputFile(digest="sha256:" + "0" * 64, size=1)
        with pytest.raises(UserError, match="upload it first"):
            await it.runner.submit(RunSpec(stages=(Stage(box=box("one")),), inputs={"x": ghost}))
        assert await it.runner.store.list_runs() == []


async def test_shutdown_cancels_and_takes_no_more(lab: Any) -> None:
    async with lab(a=[("sleep", 60)]) as it:
        record = await it.runner.submit(chain("a"))
        await it.until(record.id, at("a", "running"))
        await it.runner.shutdown(5)
        assert (await it.runner.store.get_run(record.id)).state == "cancelled"
        with pytest.raises(ProviderError, match="shutting down"):
            await it.runner.submit(chain("a"))


async def test_leaving_without_shutdown_still_closes_boxes(lab: Any) -> None:
    async with lab(a=[("sleep", 60)]) as it:
        record = await it.runner.submit(chain("a"))
        await it.until(record.id, at("a", "running"))


async def test_first_text_arrives_within_a_tenth_of_a_second(lab: Any) -> None:
    async with lab(one=[*says("first"), ("sleep", 1.0), ("exit", FakeExit())]) as it:
        record = await it.runner.submit(chain("one"))
        await it.until(record.id, at("one", "running"))
        start = anyio.current_time()
        while not any(isinstance(e.body, AgentText) for e in await it.events(record.id)):
            await anyio.sleep(0.005)
        assert anyio.current_time() - start < 0.2  # 50 ms batching, and room for a busy machine
        await it.runner.cancel(record.id)


async def test_a_store_that_fails_ends_the_run_with_a_reason(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab(one=[("sleep", 0.2), *says()]) as it:
        record = await it.runner.submit(chain("one"))
        await it.until(record.id, at("one", "running"))
        real, failures = it.runner.store.append, iter([True] * 2)

        async def flaky(*args: Any) -> Any:
            if next(failures, False):
                raise ProviderError("disk full", cause="store")
            return await real(*args)

        monkeypatch.setattr(it.runner.store, "append", flaky)
        assert await it.runner.finished(record.id, 10)
        with anyio.fail_after(5):
            while (await it.runner.store.get_run(record.id)).state not in {"failed", "succeeded"}:
                await anyio.sleep(0.05)


def test_the_error_that_tells_most_is_reported() -> None:
    group = ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [BoxLost("gone", cause="qemu-died")])])
    assert isinstance(first_error(group), BoxLost)
