"""Spans as a fold: which, within which, from when to when, how they ended; whatever a guest says."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.observe.told import FACTS, Told, agent, command, conversation
from voidbox_lab.observe.span import Span
from voidbox_lab.observe.spans import MAX_TOOLS, SpanFold, spans_of
from voidbox_lab.spec import Trouble
from voidbox_lab.spec.events import BoxBooted, Denied, Egress, RunChanged, StageChanged, ToolCall, ToolResult
from voidbox_lab.spec.run import CachedFrom, RunState, StageState
from voidbox_lab.spec.tracing import trace_id, work_span

LOST = Trouble(kind="provider", message="The box is gone.", cause="qemu-died")
FAILED = Trouble(kind="command", message="It said: a secret", cause="agent-failed", exit_code=3)


def spans(told: Told, **options: Any) -> list[Span]:
    return spans_of(told.record, told.events, **options)


def named(found: list[Span], name: str) -> Span:
    (span,) = [span for span in found if span.name == name]
    return span


def tree(found: list[Span]) -> list[str]:
    """Each span's path of names, with its time since the run's beginning."""
    by_id = {span.span_id: span for span in found}

    def path(span: Span) -> str:
        return f"{path(by_id[span.parent_id])}/{span.name}" if span.parent_id else span.name

    return [f"{path(s)} {s.start - 1000:.1f}-{'' if s.end is None else f'{s.end - 1000:.1f}'}" for s in found]


def test_a_conversation() -> None:
    """Pipeline, stage, its phases, the agent, and each call within it."""
    run, stage = "invoke_workflow demo", "invoke_workflow demo/stage a"
    assert tree(spans(conversation())) == [
        f"{run} 0.0-12.5",
        f"{stage} 0.0-12.0",
        f"{stage}/queue 0.0-1.0",
        f"{stage}/boot 1.0-3.0",
        f"{stage}/provision 3.0-4.0",
        f"{stage}/invoke_agent a 4.0-11.0",
        f"{stage}/invoke_agent a/chat claude-x 4.0-6.0",
        f"{stage}/invoke_agent a/execute_tool Bash 6.5-8.0",
        f"{stage}/invoke_agent a/execute_tool mcp__clock__now 6.6-8.5",
        f"{stage}/invoke_agent a/chat claude-x 9.0-10.0",
        f"{stage}/collect 11.0-12.0",
    ]


def test_attributes_are_those_of_the_conventions() -> None:
    """Input tokens include cached ones there; costs are summed upwards."""
    found = spans(conversation())
    chat = next(span for span in found if span.what == "model")
    assert chat.kind == "client"
    assert {k: v for k, v in chat.attributes.items() if not k.startswith("voidbox.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-x",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.output_tokens": 5,
        "http.response.status_code": 200,
    }
    assert chat.attributes["voidbox.cost_usd"] == 0.01
    worker = named(found, "invoke_agent a")
    assert worker.span_id == work_span("run-1", "a", 1)
    assert worker.trace_id == trace_id("run-1")
    assert worker.attributes["gen_ai.agent.name"] == "a"
    assert worker.attributes["gen_ai.usage.output_tokens"] == 10
    tool = named(found, "execute_tool mcp__clock__now")
    assert (tool.status, tool.attributes["error.type"]) == ("error", "tool_error")
    assert tool.attributes["gen_ai.tool.call.id"] == "t2"
    for name in ("stage a", "invoke_workflow demo"):
        whole = named(found, name)
        assert whole.usage is not None
        assert (whole.usage.calls, whole.usage.tokens.total, whole.usage.cost_usd) == (2, 34, 0.02)
    assert named(found, "stage a").attributes["voidbox.box.isolation"] == "tcg"


def test_contents_are_there_only_if_asked_for() -> None:
    """Neither prompt nor answer, neither arguments nor results; nor what an agent said of its failure."""
    told = conversation()
    assert "secret" not in str(spans(told))
    assert "the prompt" not in str(spans(told))
    assert "the answer" not in str(spans(told))
    found = spans(told, contents=True)
    assert '"content": "the prompt"' in str(named(found, "invoke_agent a").attributes["gen_ai.input.messages"])
    assert '"content": "the answer"' in str(named(found, "invoke_agent a").attributes["gen_ai.output.messages"])
    bash = named(found, "execute_tool Bash").attributes
    assert bash["gen_ai.tool.call.arguments"] == '{"command": "secret"}'
    assert bash["gen_ai.tool.call.result"] == "secret result"

    failed = Told()
    failed.until_running()
    failed.stage(5.0, "collecting")
    failed.stage(6.0, "failed", trouble=FAILED)
    found = spans(failed)
    assert "secret" not in str(found)
    worker = named(found, "invoke_agent a")
    assert (worker.status, worker.message) == ("error", "the command failed with exit code 3")
    assert worker.attributes["process.exit.code"] == 3
    assert named(found, "collect").status == "ok", "what failed is the agent, not the collecting"
    assert named(spans(failed, contents=True), "stage a").message == "It said: a secret"


def test_the_same_spans_however_they_are_fed() -> None:
    """Live, one event after the other, or all at once later: ids, times and attributes are the same."""
    told = conversation()
    fold, live = SpanFold(told.record), []
    for event in told.events:
        ended = fold.feed(event)
        assert all(span.end is not None for span in ended)
        live += ended
    assert fold.over
    assert fold.open() == []
    assert sorted(live, key=lambda s: s.span_id) == sorted(spans(told), key=lambda s: s.span_id)
    assert len({span.span_id for span in live}) == len(live)
    children = [span for span in live if span.parent_id]
    order = [span.span_id for span in live]
    assert all(order.index(s.span_id) < order.index(s.parent_id) for s in children if s.parent_id in order)


def test_a_run_that_goes_on() -> None:
    """What is open has no end yet."""
    told = conversation()
    told.events = told.events[:8]
    found = spans(told)
    assert [(s.name, s.status) for s in found if s.end is None] == [
        ("invoke_workflow demo", "open"),
        ("stage a", "open"),
        ("invoke_agent a", "open"),
        ("execute_tool Bash", "open"),
    ]


def test_another_attempt_is_another_span() -> None:
    """The first one failed while its box was up; a late model call of it belongs to it all the same."""
    told = Told()
    told.until_running()
    told.tool(5.0)
    told.stage(6.0, "retrying", trouble=LOST)
    told.call(6.5, 1.0)
    told.until_running(10.0, attempt=2)
    told.stage(15.0, "collecting")
    told.stage(16.0, "succeeded", output="x")
    told.run(16.0, "succeeded")
    found = spans(told)
    first, second = [span for span in found if span.what == "stage"]
    assert (first.status, first.attributes["error.type"], first.attempt) == ("error", "qemu-died", 1)
    assert (second.status, second.start, second.attempt) == ("ok", 1010.0, 2)
    tool = named(found, "execute_tool Bash")
    assert (tool.status, tool.end, tool.attributes["error.type"]) == ("error", 1006.0, "no-result")
    workers = [span for span in found if span.what == "agent"]
    assert [worker.status for worker in workers] == ["error", "ok"]
    assert named(found, "chat claude-x").parent_id == workers[0].span_id


def test_a_daemon_that_died_leaves_an_attempt_that_ended() -> None:
    """The run goes on under the next one."""
    told = Told()
    told.until_running()
    died = Trouble(kind="provider", message="The daemon ended abruptly.", cause="daemon-died")
    told.stage(50.0, "queued", trouble=died)
    told.run(50.0, "interrupted", died)
    found = spans(told)
    assert [s.attributes["error.type"] for s in found if s.status == "error"] == ["daemon-died"] * 2
    assert [s.name for s in found if s.status == "open"] == ["invoke_workflow"]


def test_stages_that_did_not_begin() -> None:
    """Skipped, or taken from an earlier run; each is a span of no length or so."""
    told = Told(agent("a"), agent("b", "a"))
    told.stage(0.0, "queued", attempt=1)
    told.stage(0.1, "succeeded", output="x", cached=CachedFrom(run="run-0", stage="a"))
    told.stage(0.2, "skipped", "b", trouble=LOST)
    told.run(0.3, "failed", LOST)
    found = spans(told)
    assert named(found, "stage a").attributes["voidbox.stage.cached_from"] == "run-0/a"
    skipped = named(found, "stage b")
    assert (skipped.status, skipped.seconds) == ("cancelled", 0.0)
    assert skipped.attributes["voidbox.stage.needs"] == ("a",)


def test_cancelled_is_no_error() -> None:
    told = Told()
    told.until_running()
    told.tool(5.0)
    stop = Trouble(kind="cancelled", message="It was cancelled by the user.", cause="cancelled")
    told.stage(6.0, "cancelled", trouble=stop)
    told.run(6.0, "cancelled", stop)
    found = {span.name: span.status for span in spans(told)}
    assert found["invoke_agent a"] == found["stage a"] == found["invoke_workflow"] == "cancelled"


def test_a_command_is_not_an_agent() -> None:
    """Its arguments may hold a secret."""
    told = Told(command("a", "/usr/bin/curl", "-H", "secret"))
    told.until_running()
    told.stage(5.0, "collecting")
    told.stage(6.0, "succeeded", output="x")
    found = spans(told)
    assert named(found, "exec curl").attributes["process.executable.name"] == "curl"
    assert "secret" not in str(found)
    assert named(spans(told, contents=True), "exec curl").attributes["process.command_args"] == (
        "/usr/bin/curl", "-H", "secret",
    )  # fmt: skip


def test_connections_and_denials() -> None:
    """A connection is within the tool call that it was made for, also when that has ended."""
    told = Told()
    told.until_running()
    told.tool(5.0, "t1")
    told.result(6.0, "t1")
    there = {"host": "pypi.org", "port": 443, "duration_s": 0.5}
    told.tell(6.1, Egress(**there, verdict="allowed", rule="pypi.org:443", bytes_in=9, tool_call="t1"))
    told.tell(6.2, Egress(host="evil.example", port=80, verdict="denied", reason="not allowed"))
    told.tell(6.3, Denied(rule="egress", subject="evil.example:80", message="not allowed", count=3))
    told.stage(7.0, "succeeded", output="x")
    found = spans(told)
    good, bad = named(found, "egress pypi.org"), named(found, "egress evil.example")
    assert good.parent_id == named(found, "execute_tool Bash").span_id
    assert good.kind == "client"
    assert (good.start, good.status) == (1005.6, "ok")
    assert bad.parent_id == named(found, "invoke_agent a").span_id
    assert (bad.status, bad.attributes["error.type"], bad.message) == ("error", "denied", "not allowed")
    assert named(found, "stage a").attributes["voidbox.denied"] == 3


@pytest.mark.parametrize(("status", "error"), [(429, "429"), (0, "connection")])
def test_a_model_call_that_failed(status: int, error: str) -> None:
    """Costs nothing that is known, and says how it failed."""
    told = Told()
    told.until_running()
    told.call(5.0, status=status, cost_usd=None)
    call = named(spans(told), "chat claude-x")
    assert (call.status, call.attributes["error.type"]) == ("error", error)
    assert call.usage is not None
    assert call.usage.cost_usd is None, "it used tokens, of unknown price"
    assert "voidbox.cost_usd" not in call.attributes


def test_what_a_guest_says_is_bounded() -> None:
    """Endless tool calls without results, ids used twice, names with control codes and of any length."""
    told = Told()
    told.until_running()
    for n in range(MAX_TOOLS + 50):
        told.tool(5.0 + n / 1000, f"id-{n}")
    fold = SpanFold(told.record)
    given_up = [span for event in told.events for span in fold.feed(event) if span.what == "tool"]
    assert len(given_up) == 50
    assert len([span for span in fold.open() if span.what == "tool"]) == MAX_TOOLS

    odd = Told()
    odd.until_running()
    odd.tool(5.0, "same", "\x1b]0;x\x07" + "n" * 10_000)
    odd.tool(5.1, "same")
    odd.result(5.2, "same")
    odd.result(5.3, "never called")
    odd.tell(5.4, BoxBooted(facts=FACTS), "no such stage")
    odd.stage(6.0, "succeeded", output="x")
    found = [span for span in spans(odd) if span.what == "tool"]
    assert [span.status for span in found] == ["error", "ok"]
    assert len({span.span_id for span in found}) == 2
    assert all(span.name.isprintable() and len(span.name) < 300 for span in found)


def test_times_that_go_backwards() -> None:
    """A clock that is set: no span ends before it began."""
    told = Told()
    told.until_running()
    told.call(4.5, -3.0)
    told.tool(5.0)
    told.result(3.0)
    told.stage(2.0, "succeeded", output="x")
    told.run(1.0, "succeeded")
    assert all(span.seconds is not None and span.seconds >= 0 for span in spans(told))


BODIES = st.one_of(
    st.builds(
        StageChanged,
        state=st.sampled_from(get_args(StageState)),
        attempt=st.none() | st.integers(1, 3),
        trouble=st.none() | st.sampled_from([LOST, FAILED]),
    ),
    st.builds(RunChanged, state=st.sampled_from(get_args(RunState)), trouble=st.none() | st.just(LOST)),
    st.builds(ToolCall, id=st.sampled_from("ab"), name=st.just("Bash")),
    st.builds(ToolResult, id=st.sampled_from("ab"), content=st.just(""), is_error=st.booleans()),
    st.sampled_from([Egress(host="h", port=1, verdict="allowed", tool_call=call) for call in "ab"]),
    st.just(BoxBooted(facts=FACTS)),
)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "x", None]), BODIES, st.floats(-1, 1)), max_size=60))
def test_any_order_of_events(steps: list[tuple[str | None, Any, float]]) -> None:
    """Nothing raises; each span comes once, is within another, and is the same if it is fed live or later."""
    told, at = Told(agent("a"), agent("b", "a")), 1.0
    for stage, body, later in steps:
        at += later
        told.tell(at, body, None if isinstance(body, RunChanged) else stage)
    fold = SpanFold(told.record)
    live = [span for event in told.events for span in fold.feed(event)]
    found = live + fold.open()
    ids = [span.span_id for span in found]
    assert len(set(ids)) == len(ids)
    assert all(span.parent_id in ids for span in found if span.what != "run")
    assert all(span.end is None or span.end >= span.start for span in found)
    assert sorted(spans(told), key=lambda s: s.span_id) == sorted(found, key=lambda s: s.span_id)
