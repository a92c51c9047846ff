"""`VoidBox` and `Run`: declared, run sync and async, seen as frames. The daemon is real, its boxes are not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.daemon.conftest import house, settings
from tests.engine.doubles import says
from voidbox_lab import CommandFailed, LimitExceeded, Run, Skill, UserError, VoidBox
from voidbox_lab.api import named, persistently
from voidbox_lab.client import AsyncClient
from voidbox_lab.errors import ProviderError
from voidbox_lab.observe.frames import STAGE_COLUMNS, events_frame, telemetry_frame
from voidbox_lab.observe.span_frames import SPAN_COLUMNS
from voidbox_lab.spec import Model, RunRecord, RunSpec, Tokens
from voidbox_lab.spec.events import ModelCall
from voidbox_lab.spec.tracing import trace_id

__all__ = ["house", "settings"]

MODEL = "scripted:quickstart"


def test_a_declaration(tmp_path: Path) -> None:
    path = tmp_path / "SKILL.md"
    path.write_text("---\nname: adding\ndescription: how to add\n---\nAdd.\n")
    skills = [path, Skill(name="s", description="", body="b")]
    box = VoidBox("analyst", model=MODEL, prompt="p", skills=skills, memory_mb=256)
    assert [s.name for s in box.spec.skills] == ["adding", "s"]
    assert box.spec.model == Model.parse(MODEL)
    assert repr(box) == "<VoidBox analyst · scripted:quickstart · skills: adding, s · 256 MiB>"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory_mb": 1}, "memory_mb"),
        ({"model": "gpt"}, "PROVIDER:NAME"),
        ({"colour": "red"}, "colour"),
        ({"skills": ["nowhere.md"]}, r"nowhere\.md"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_what_cannot_be_declared(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        VoidBox("analyst", **{"model": MODEL, "prompt": "p"} | options)


def test_a_model_is_chosen_never_assumed() -> None:
    """A scripted answer by default would pass for a real one."""
    with pytest.raises(UserError, match="needs a model"):
        VoidBox("analyst", prompt="p")


def test_inputs_by_name(tmp_path: Path) -> None:
    a, b = tmp_path / "a.csv", tmp_path / "sub" / "a.csv"
    b.parent.mkdir()
    for path in (a, b):
        path.write_text("x")
    assert named(None) == {}
    assert named(str(a)) == {"a.csv": a}
    assert named({"x.csv": b"1", "y.csv": a}) == {"x.csv": b"1", "y.csv": a}
    for wrong, message in (
        (b"1", "file name"),
        ([a, b], "Two inputs"),
        (tmp_path, "directory"),
        ("no.csv", "no input"),
    ):
        with pytest.raises(UserError, match=message):
            named(wrong)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_arun(house: Any) -> None:
    run = await VoidBox("one", model=MODEL, prompt="p").arun({"x.csv": b"a,b\n"}, settings=house.settings)
    assert (run.state, run.result, run.stages["one"].output) == ("succeeded", "one done", "one done")
    assert run.check() is run
    assert house.backend.boxes_[0].files["/workspace/input/x.csv"] == b"a,b\n"
    assert run.spec.inputs["x.csv"].size == 4


@pytest.mark.anyio
async def test_a_box_has_files_of_its_own(house: Any, tmp_path: Path) -> None:
    """Read when it is declared; no other box of its pipeline gets them, each box of a map does."""
    news = tmp_path / "news.csv"
    news.write_text("old")
    one = VoidBox("one", model=MODEL, prompt="p")
    two = VoidBox("two", model=MODEL, prompt="p", inputs=news)
    news.write_text("new")
    run = await (one | two).arun({"x.csv": b"1"}, settings=house.settings)
    first, second = (box.files for box in house.backend.boxes_)
    assert (first.get("/workspace/input/news.csv"), first["/workspace/input/x.csv"]) == (None, b"1")
    assert second["/workspace/input/news.csv"] == b"old"
    assert "/workspace/input/x.csv" not in second
    assert run.state == "succeeded"
    mapped = two.map(["a", "b"])
    assert [sorted(s.inputs) for s in mapped] == [["item.json", "news.csv"]] * 2
    assert set(mapped.graph().blobs.values()) == {b"old", b'"a"', b'"b"'}
    news.unlink()
    with pytest.raises(UserError, match="no input file"):
        VoidBox("two", model=MODEL, prompt="p", inputs=news)


@pytest.mark.anyio
async def test_run_blocks_inside_a_running_loop(house: Any) -> None:
    """As in a notebook cell: `run` in a thread that has a running loop (not the daemon's, here)."""

    async def cell() -> Run:
        return VoidBox("one", model=MODEL, prompt="p").run(settings=house.settings)

    run = await anyio.to_thread.run_sync(lambda: asyncio.run(cell()))
    assert run.state == "succeeded"
    plain = await anyio.to_thread.run_sync(
        lambda: VoidBox("two", model=MODEL, prompt="p").run(fresh=True, settings=house.settings)
    )
    assert plain.result == "two done"


@pytest.mark.anyio
async def test_cancelling_the_awaiting_task_cancels_the_run(house: Any) -> None:
    task = asyncio.create_task(VoidBox("slow", model=MODEL, prompt="p").arun(settings=house.settings))
    with anyio.fail_after(10):
        while not house.daemon.runner.active:
            await anyio.sleep(0.02)
    (run_id,) = house.daemon.runner.active
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await house.daemon.runner.finished(run_id, 5)
    assert (await house.client.run(run_id)).state == "cancelled"


@pytest.mark.anyio
async def test_cancelling_during_the_submission_cancels_the_run(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon has begun it and its answer is on the way, when the cell is stopped, twice."""
    submit, begun = AsyncClient.submit, asyncio.Event()

    async def slowly(client: AsyncClient, spec: RunSpec) -> RunRecord:
        record = await submit(client, spec)
        begun.set()
        await asyncio.sleep(0.3)
        return record

    monkeypatch.setattr(AsyncClient, "submit", slowly)
    box = VoidBox("slow", model=MODEL, prompt="p")
    task = asyncio.create_task(box.arun(settings=house.settings))
    await asyncio.wait_for(begun.wait(), 10)
    (run_id,) = house.daemon.runner.active
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await house.daemon.runner.finished(run_id, 5)
    assert (await house.client.run(run_id)).state == "cancelled"


@pytest.mark.anyio
async def test_insisting_has_a_bound() -> None:
    """However often it is cancelled, by asyncio or by a scope."""
    with anyio.fail_after(2), anyio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(TimeoutError):
            await persistently(anyio.sleep_forever(), 0.05)


@pytest.mark.anyio
async def test_a_failed_run_is_a_run(house: Any) -> None:
    from tests.engine.doubles import FakeExit

    house.backend.scripts["one"] = [("exit", FakeExit(code=2))]
    run = await VoidBox("one", model=MODEL, prompt="p").arun(settings=house.settings)
    assert run.state == "failed"
    assert run.trouble is not None
    with pytest.raises(CommandFailed, match="exit code 2") as caught:
        run.check()
    assert caught.value.exit_code == 2
    house.backend.fail = LimitExceeded("Box x did not come up within 1 s.", limit="time", cause="boot")
    run = await VoidBox("one", model=MODEL, prompt="p").arun(settings=house.settings)
    with pytest.raises(LimitExceeded, match="come up"):
        run.check()


@pytest.mark.anyio
async def test_frames(house: Any) -> None:
    run = await VoidBox("one", model=MODEL, prompt="p").arun(settings=house.settings)
    frame = run.to_frame()
    assert list(frame.columns) == list(STAGE_COLUMNS)
    assert frame.index.name == "stage"
    row = frame.loc["one"]
    assert (row.state, row.output, row.isolation, row.vsock) == ("succeeded", "one done", "tcg", "user")
    assert row.duration_s > 0
    assert frame.cost_usd.isna().all(), "no model call was metered, so there is no price"
    assert (row.attempts, row.cached) == (1, None)
    again = (await VoidBox("one", model=MODEL, prompt="p").arun(settings=house.settings)).to_frame().loc["one"]
    assert (again.state, again.cached, again.cost_usd) == ("succeeded", run.id, 0.0)
    events, samples = await anyio.to_thread.run_sync(lambda: (run.events_frame(), run.telemetry_frame()))
    assert list(events.index) == list(range(1, len(events) + 1))
    assert events.iloc[-1].body["state"] == "succeeded"
    assert samples.cpu.iloc[0] == 0.5
    assert str(samples.index.tz) == "UTC"
    assert run._events is None, "a frame needs no list of all events"


@pytest.mark.anyio
async def test_spans_of_a_run(house: Any) -> None:
    """Made here of the run's events: as a frame, as a trace, with samples and with costs of tools."""
    house.backend.scripts["one"] = [("out", b'{"tool": "ls"}\n'), ("sleep", 0.1), *says(result="x")]
    run = await VoidBox("one", model=MODEL, prompt="p").arun(settings=house.settings)
    spans, trace, samples, costs = await anyio.to_thread.run_sync(
        lambda: (run.spans(contents=True), run.trace(), run.telemetry(), run.tool_costs())
    )
    assert list(spans.columns) == list(SPAN_COLUMNS)
    assert spans.trace_id.unique().tolist() == [trace_id(run.id)]
    worker = spans[spans.name == "invoke_agent one"].iloc[0]
    assert "p" in worker.attributes["gen_ai.input.messages"]
    assert (trace.run, len(trace.spans)) == (run.id, len(spans))
    assert "execute_tool bash" in trace._repr_html_()
    assert samples.span.iloc[0] in {"invoke_agent one", "execute_tool bash"}
    assert costs.tool.tolist() == ["bash"]
    assert run._events is None


@pytest.mark.anyio
async def test_some_events(house: Any) -> None:
    """From a number on, so many of them; the same whether all are known already or not."""
    run = await VoidBox("one", model=MODEL, prompt="p").arun(settings=house.settings)

    def look() -> list[list[int]]:
        chosen = ({"after": 3}, {"limit": 2}, {"after": 2, "limit": 3}, {"limit": 0}, {"after": 10_000})
        return [[event.seq for event in run.events(**options)] for options in chosen]

    some = await anyio.to_thread.run_sync(look)
    assert run._events is None
    every = await anyio.to_thread.run_sync(run.events)
    assert await anyio.to_thread.run_sync(run.events) is every
    numbers = [event.seq for event in every]
    assert numbers == list(range(1, len(every) + 1))
    assert some == [numbers[3:], [1, 2], [3, 4, 5], [], []]
    assert await anyio.to_thread.run_sync(look) == some
    assert await anyio.to_thread.run_sync(lambda: list(run.iter_events())) == every


def test_frames_of_no_events() -> None:
    """Have their columns all the same."""
    events, samples = events_frame([]), telemetry_frame([])
    assert (list(events.columns), len(events), events.index.name) == (["at", "stage", "type", "body"], 0, "seq")
    assert (samples.index.name, len(samples), "cpu" in samples.columns) == ("at", 0, True)
    assert str(samples.index.tz) == "UTC"


@pytest.mark.anyio
async def test_cost_of_a_run(house: Any) -> None:
    record = (await VoidBox("one", model=MODEL, prompt="p").arun(settings=house.settings)).record
    call = ModelCall(
        request="r", model="m", source="live", status=200, tokens=Tokens(input=1), cost_usd=0.25, duration_s=1
    )
    await house.daemon.journal.record(record.id, "one", call)
    run = await anyio.to_thread.run_sync(lambda: Run.load(record.id, settings=house.settings))
    assert run.cost_usd == 0.25
    await house.daemon.journal.record(record.id, "one", call.model_copy(update={"cost_usd": None}))
    await anyio.to_thread.run_sync(run.refresh)
    assert run.cost_usd is None
    assert "unpriced" in repr(run)


@pytest.mark.anyio
async def test_an_unknown_run(house: Any) -> None:
    with pytest.raises(UserError, match="no run 'nope'"):
        await anyio.to_thread.run_sync(lambda: Run.load("nope", settings=house.settings))


@pytest.mark.anyio
async def test_a_repr_holds_no_control_codes(house: Any) -> None:
    house.backend.fail = ProviderError("bad \x1b[2J\x07 text", cause="x")
    run = await VoidBox("one", model=MODEL, prompt="p").arun(settings=house.settings)
    assert "\x1b" not in repr(run)
    assert "bad" in repr(run)
