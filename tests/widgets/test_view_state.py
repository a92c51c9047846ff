"""The fold: what it shows, that it is bounded, and that patches say the same as the whole."""

from __future__ import annotations

import json
import re
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox_lab.spec.events import (
    BODY,
    AgentText,
    Body,
    Denied,
    Egress,
    Event,
    FileKept,
    ModelCall,
    Mounted,
    RunChanged,
    StageChanged,
    ToolCall,
    ToolResult,
)
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.model import Model
from voidbox_lab.spec.run import RunRecord, RunSpec, Stage, Tokens
from voidbox_lab.spec.voidbox import VoidBoxSpec
from voidbox_lab.widgets import display, plain, static_html
from voidbox_lab.widgets.present import patch, present
from voidbox_lab.widgets.transcript import MAX_ENTRIES
from voidbox_lab.widgets.view_state import ViewState, begin, fold, settle
from voidbox_lab.widgets.vitals import MAX_SAMPLES


def record(*names: str, model: str = "scripted:quickstart") -> RunRecord:
    """A run of these stages, just created."""
    boxes = [VoidBoxSpec(name=n, prompt="?", model=Model.parse(model)) for n in names or ("analyst",)]
    return RunRecord(id="r1", spec=RunSpec(stages=tuple(Stage(box=b) for b in boxes)), created_at=100.0)


def played(bodies: list[Body], stage: str | None = "analyst", state: ViewState | None = None) -> ViewState:
    """The state after these events of one stage, a second apart."""
    state = state or begin(record())
    for body in bodies:
        n = state.last_seq + 1
        state = fold(state, Event(seq=n, run="r1", at=100.0 + n, stage=stage, body=body))
    return state


def scenario(replay: ModuleType, name: str) -> list[Body]:
    """The bodies of a written-down stage."""
    return [body for _, body in replay.scenario(name)]


def test_a_whole_stage_reads_as_it_happened(replay: ModuleType) -> None:
    """Text joins within its block, results find their calls, tokens add up, the last state is the last said."""
    stage = played(scenario(replay, "quickstart")).stages["analyst"]
    assert stage.state == "succeeded"
    assert [e.kind for e in stage.entries] == ["text", "tool", "text", "tool", "warning", "tool"]
    assert stage.entries[0].text.text.startswith("I will look at the columns")
    assert [e.is_error for e in stage.entries if e.kind == "tool"] == [False, True, False]
    assert stage.entries[1].text.text.endswith("561")
    assert (stage.turns, stage.tool_calls) == (3, 3)
    assert stage.tokens == Tokens(input=3 * 812 + 6, output=3 * 96)
    assert stage.output is not None
    assert "AAPL had the best" in stage.output.text


def test_events_seen_before_change_nothing(replay: ModuleType) -> None:
    """A stream that is resumed too early does not count twice."""
    bodies = scenario(replay, "quickstart")
    state = played(bodies)
    again = state
    for n, body in enumerate(bodies, 1):
        again = fold(again, Event(seq=n, run="r1", at=100.0 + n, stage="analyst", body=body))
    assert again is state


def test_one_unpriced_call_makes_the_sum_unpriced() -> None:
    """A total that leaves a call out is not shown as a price."""

    def call(cost: float | None) -> ModelCall:
        return ModelCall(
            request="r", model="m", source="live", status=200, tokens=Tokens(input=5), cost_usd=cost, duration_s=1
        )

    state = played([call(0.25), call(None), call(0.5)])
    assert state.cost_usd is None
    assert "unpriced" in static_html.render(state, now=200)
    assert "$0.7500" in static_html.render(played([call(0.25), call(0.5)]), now=200)


def test_a_refused_call_leaves_the_price_known() -> None:
    """As in the store's record: nothing was used, so nothing was left out."""
    paid = ModelCall(request="r", model="m", source="live", status=200, cost_usd=0.25, duration_s=1)
    refused = paid.model_copy(update={"status": 529, "cost_usd": None})
    assert played([refused, paid]).cost_usd == 0.25
    assert played([paid, refused.model_copy(update={"status": 200})]).cost_usd is None


def test_a_result_without_its_call_is_left_out() -> None:
    """The call may have been trimmed, or never made: neither breaks the view."""
    state = played([ToolResult(id="nobody", content="x")])
    assert state.stages["analyst"].entries == ()


def test_long_transcripts_keep_their_beginning_and_their_end() -> None:
    """The middle goes, and the view says how much of it."""
    state = played([AgentText(text=f"piece {i}", block=i) for i in range(200)])
    entries = state.stages["analyst"].entries
    assert len(entries) == MAX_ENTRIES
    assert entries[0].text.text == "piece 0"
    assert entries[-1].text.text == "piece 199"
    assert f"{200 - MAX_ENTRIES} entries not shown" in static_html.render(state, now=400)


def test_the_store_has_the_last_word_on_figures() -> None:
    """What the record says replaces what was summed from a stream."""
    state = played([ModelCall(request="r", model="m", source="live", status=200, cost_usd=1.0, duration_s=1)])
    final = record().model_copy(update={"state": "failed", "finished_at": 130.0})
    kept = {"analyst": {"name": "analyst", "state": "failed", "tokens": {"input": 7}, "turns": 2, "cost_usd": 0.5}}
    final = RunRecord.model_validate(final.model_dump() | {"stages": kept})
    settled = settle(state, final)
    assert settled.over
    assert settled.stages["analyst"].tokens.total == 7
    assert settled.cost_usd == 0.5


def test_an_interrupted_run_takes_no_longer_than_it_took() -> None:
    """Its daemon is dead: it has not finished, and goes on no longer either."""
    state = played([StageChanged(state="running"), RunChanged(state="interrupted")])
    ended = state.finished_at
    assert ended is not None
    settled = settle(state, record().model_copy(update={"state": "interrupted"}))
    assert settled.finished_at == ended
    assert present(settled, ended + 9000) == present(settled, ended) | {"now": ended + 9000}


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=200), lambda x: st.lists(x, max_size=3)
)
hostile_text = st.text(max_size=400) | st.sampled_from(
    ["<b>&\"'", "\x1b[2J" * 50, "x" * 65536, "\n" * 5000, "```\n|a|\n", "|a|\n|--:|\n|1|\n" * 30, "**`" * 900]
)
COUNTERS = [
    *("disk_total_kb", "disk_used_kb", "disk_read_bytes", "disk_write_bytes", "net_rx_bytes", "net_tx_bytes"),
    *("processes", "memory_total_kb"),
]


def sample(f: float) -> Body:
    """A telemetry sample of nonsense."""
    fields = dict.fromkeys(COUNTERS, 1 << 50) | {"cpu": f, "load1": f, "uptime_s": f}
    fields |= {"memory_total_kb": 0, "memory_used_kb": 1 << 50}
    return BODY.validate_python({"type": "telemetry", **fields})


any_body = st.one_of(
    st.builds(AgentText, text=hostile_text, block=st.integers(-3, 3)),
    st.builds(
        ToolCall,
        id=st.sampled_from("abc"),
        name=hostile_text,
        input=st.dictionaries(hostile_text, json_values, max_size=4),
    ),
    st.builds(ToolResult, id=st.sampled_from("abc"), content=hostile_text, is_error=st.booleans()),
    st.builds(
        StageChanged,
        state=st.sampled_from(["queued", "running", "failed", "succeeded"]),
        output=st.none() | hostile_text,
    ),
    hostile_text.map(lambda t: BODY.validate_python({"type": "log", "text": t})),
    st.builds(
        Denied,
        rule=hostile_text.map(lambda t: t[:100]),
        subject=hostile_text.map(lambda t: t[:1000]),
        message=hostile_text.map(lambda t: t[:1000]),
        program=hostile_text.map(lambda t: t[:64]),
        count=st.integers(1, 10**30),
    ),
    st.builds(
        Egress,
        host=hostile_text.map(lambda t: t[:300]),
        port=st.integers(),
        rule=hostile_text.map(lambda t: t[:320]),
        verdict=st.sampled_from(["allowed", "denied", "failed"]),
        bytes_in=st.integers(),
        bytes_out=st.integers(),
        duration_s=st.floats(),
        reason=hostile_text.map(lambda t: t[:1000]),
    ),
    st.builds(
        FileKept,
        path=st.text("ab<&\u202e ", min_size=1, max_size=80),
        file=st.builds(InputFile, digest=st.just("sha256:" + "0" * 64), size=st.integers(0, 10**15)),
    ),
    st.builds(
        Mounted,
        mount=hostile_text,
        how=st.just("copy"),
        direction=st.sampled_from(["in", "out"]),
        files=st.integers(),
        bytes=st.integers(0, 10**15),
        digest=st.just("x"),
    ),
    hostile_text.map(lambda t: BODY.validate_python({"type": "notice", "message": t})),
    st.just(BODY.validate_python({"type": "run", "state": "running"})),
    st.floats(0, 1e15).map(sample),
)
any_events = st.lists(
    st.tuples(st.sampled_from([None, "analyst", "other", "x" * 500, "<i>"]), any_body), max_size=60
)


@settings(max_examples=150, deadline=None)
@given(any_events, st.integers(1, 8))
def test_any_events_leave_a_bounded_view_that_every_surface_can_show(events: Any, repeat: int) -> None:
    """Whatever the events say, in whatever order: nothing raises, and size has a ceiling."""
    state = begin(record("analyst", "second"))
    for seq, (stage, body) in enumerate(events * repeat, 1):
        before, state = state, fold(state, Event(seq=seq, run="r1", at=100.0 + seq, stage=stage, body=body))
        list(plain.lines(before, state))
    for view in state.stages.values():
        assert len(view.entries) <= MAX_ENTRIES
        vitals = view.vitals
        assert len(vitals.cpu) == len(vitals.disk) <= MAX_SAMPLES
        assert all(0 <= v <= 1 for v in (*vitals.cpu, *vitals.memory))
        assert all(len(e.text) + len(e.arguments) + len(e.summary) < 9_000 for e in view.entries)
        assert view.output is None or len(view.output) <= 16_384
    html = static_html.render(state, now=500.0)
    assert len(html) < 6 * len(state.stages) * (
        MAX_ENTRIES * 9_000 + 40_000
    )  # 6: the longest escape, &#34; and a tag
    json.dumps(present(state, 500.0), allow_nan=False)


def apply(view: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """What the JavaScript does with a patch, in Python."""
    stages = {s["name"]: s for s in view["stages"]}
    for new in change["stages"]:
        old = stages.get(new["name"], {"entries": [], "answer": None, "doings": []})
        entries = {e["key"]: e for e in old["entries"]}
        for entry in new["entries"]:
            entries[entry["key"]] = changed(entries.get(entry["key"], {}), entry)
        gap = new["gap"] or {"from": 0, "to": 0}
        kept = [e for k, e in sorted(entries.items()) if not gap["from"] <= k < gap["to"]]
        stages[new["name"]] = {**old, **new, "entries": kept}
    return {**view, **change, "stages": list(stages.values())}


def changed(before: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """An entry after its patch."""
    if "append" in entry:
        return before | {"text": before["text"] + entry["append"]}
    if "from" in entry:
        kept = before["blocks"][: entry["from"]]
        return {k: v for k, v in entry.items() if k != "from"} | {"blocks": kept + entry["blocks"]}
    return before | entry


@settings(max_examples=100, deadline=None)
@given(any_events, st.integers(1, 7))
def test_patches_lead_to_the_same_view_as_the_whole(events: Any, every: int) -> None:
    """A browser that followed patches shows what a browser that came late gets at once."""
    state = sent = begin(record("analyst", "second"))
    shown = present(sent, 500.0)
    for seq, (stage, body) in enumerate(events, 1):
        state = fold(state, Event(seq=seq, run="r1", at=100.0 + seq, stage=stage, body=body))
        if seq % every == 0:
            shown, sent = apply(shown, json.loads(json.dumps(patch(sent, state, 500.0)))), state
    shown = apply(shown, patch(sent, state, 500.0))
    assert shown == present(state, 500.0)


def test_doings_are_told_on_every_surface(replay: ModuleType) -> None:
    """Denials with rule and sentence, connections with bytes, files with sizes, folders; repetitions once."""
    state = played(scenario(replay, "deeds"))
    html = static_html.render(state, now=200.0)
    text = plain.summary(state)
    denied = "commands: nc is not among the programs that this stage may execute; add it to the policy"
    for said in (
        denied,
        "(bash), 4 times",
        "syscalls.ptrace: ptrace is denied. (gdb)",
        "2 connections, 1 denied, 1.2 kB out, 2.2 MB in",
        "2 output files, 1.2 MB",
        "tables/returns.parquet (1.2 MB)",
        "/srv/data:/data:ro mounted: 12 files, 33.8 kB (copy)",
    ):
        assert said in text
        assert said in html.replace("&#39;", "'")
    assert "pypi.org:443 allowed (pypi.org:443), 1.2 kB out, 2.2 MB in, 1.2 s" in html
    assert "5 denied by the policy: commands, syscalls.ptrace" in html
    assert text.count(denied) == 1
    shown = present(state, 200.0)["stages"][0]
    assert [b["text"] for b in shown["badges"]][-1] == "5 denied"
    assert [g["kind"] for g in shown["doings"]] == ["denied", "egress", "files", "mounts"]
    assert display.facts(state)["stages"]["analyst"]["files"] == {
        "report.md": 2048,
        "tables/returns.parquet": 1234567,
    }


def test_thousands_of_denials_are_a_few_lines() -> None:
    """Each of another kind: the last ones are shown, the others counted."""
    state, lines = begin(record()), 0
    for n in range(1, 5001):
        body = Denied(rule="commands", subject=f"/tmp/{n}", message=f"/tmp/{n} is not allowed.")
        before, state = state, fold(state, Event(seq=n, run="r1", at=100.0, stage="analyst", body=body))
        lines += len(list(plain.lines(before, state)))
    group = present(state, 200.0)["stages"][0]["doings"][0]
    assert group["summary"] == "5,000 denied by the policy: commands"
    assert group["lines"][0] == "… 4,994 earlier ones not shown …"
    assert group["lines"][-1] == "commands: /tmp/5000 is not allowed."
    assert len(group["lines"]) == 7
    assert lines == plain.MAX_TOLD
    over = fold(state, Event(seq=5001, run="r1", at=101.0, stage="analyst", body=StageChanged(state="failed")))
    assert "analyst  5,000 denied by the policy, of which 20 are shown" in list(plain.lines(state, over))


@pytest.mark.parametrize("name", ["quickstart", "hostile", "fails", "deeds"])
def test_static_html_is_inert(replay: ModuleType, name: str) -> None:
    """No element, attribute or handler of the guest's making; no control code; no script of ours either."""
    html = static_html.render(played(scenario(replay, name)), now=200.0)
    assert "<script" not in html
    assert "<img" not in html
    assert "\x1b" not in html
    assert "owned" not in html or "&lt;script&gt;" in html


def test_static_html_reads_without_its_style(replay: ModuleType) -> None:
    """GitHub strips classes and style: words must not run together, and the labels must be there."""
    html = static_html.render(played(scenario(replay, "quickstart")), now=200.0)
    text = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    text = " ".join(re.sub(r"<[^>]+>", "", text).split())
    assert "analyst succeeded TCG scripted:quickstart 3 turns · 3 tools" in text
    assert "no cost" in text
    assert "<th>symbol</th>" in html
    assert '<td style="text-align:right">0.0287</td>' in html


def test_plain_lines_tell_the_story(replay: ModuleType) -> None:
    """One line per state, call and failure; the answer; the labels at the end."""
    state = begin(record())
    told = list(plain.lines(None, state))
    for seq, body in enumerate(
        [*scenario(replay, "quickstart"), BODY.validate_python({"type": "run", "state": "succeeded"})], 1
    ):
        stage = None if body.type == "run" else "analyst"
        before, state = state, fold(state, Event(seq=seq, run="r1", at=100.0 + seq, stage=stage, body=body))
        told += plain.lines(before, state)
    assert told[0] == "run r1: analyst"
    assert "analyst  provisioning: TCG box, 512 MB, up in 6.1 s" in told
    assert any(line.startswith("analyst  > bash head -3 /workspace") for line in told)
    assert any(line.startswith("analyst  ! bash failed: ModuleNotFoundError") for line in told)
    assert any("    AAPL had the best" in line for line in told)
    assert told[-1].startswith("run r1: succeeded after")
    assert told[-1].endswith("(TCG, scripted model)")


def test_plain_lines_carry_no_control_codes(replay: ModuleType) -> None:
    """A guest cannot write to the user's terminal."""
    state = begin(record())
    for seq, body in enumerate(scenario(replay, "hostile"), 1):
        before, state = state, fold(state, Event(seq=seq, run="r1", at=100.0 + seq, stage="analyst", body=body))
        assert not any("\x1b" in line or "\x07" in line for line in plain.lines(before, state))


def test_the_answer_is_not_said_twice() -> None:
    """Agents end by saying their answer: the transcript leaves that to the answer below it."""
    state = played(
        [
            AgentText(text="Looking."),
            AgentText(text="It is 42.", block=1),
            StageChanged(state="succeeded", output="It is 42.\n"),
        ]
    )
    html = static_html.render(state, now=200)
    assert html.count("It is 42.") == 1
    assert "Looking." in html


def test_a_step_on_the_way_is_folded() -> None:
    """The answer of a stage that another one needs makes room for what the run says; a failure stays open."""
    boxes = [VoidBoxSpec(name=n, prompt="?", model=Model.parse("scripted:x")) for n in ("a", "b")]
    stages = (Stage(box=boxes[0]), Stage(box=boxes[1], needs=("a",)))
    state = begin(RunRecord(id="r1", spec=RunSpec(stages=stages), created_at=100.0))
    state = played([AgentText(text="Looking."), StageChanged(state="running")], "a", state)
    assert [s["folded"] for s in present(state, 200)["stages"]] == [False, False]
    state = played([StageChanged(state="succeeded", output="of a")], "a", state)
    state = played([StageChanged(state="succeeded", output="of b")], "b", state)
    assert [s["folded"] for s in present(state, 200)["stages"]] == [True, False]
    html = static_html.render(state, now=200)
    folded = html[html.index("<details") : html.index("</details>")]
    assert "transcript and answer" in folded
    assert "Looking." in folded
    assert "of a" in folded
    assert "of b" in html.replace(folded, "")
    failed = played([StageChanged(state="failed", output="of a")], "a", state)
    assert [s["folded"] for s in present(failed, 200)["stages"]] == [False, False]


def test_a_hundred_megabytes_stay_a_few_kilobytes(replay: ModuleType) -> None:
    """A hostile agent's output, HTML and ANSI codes, in the largest events there are: a view has a bound."""
    state = begin(record())
    for seq, body in enumerate(scenario(replay, "flood"), 1):
        state = fold(state, Event(seq=seq, run="r1", at=100.0 + seq, stage="analyst", body=body))
    view = present(state, 9000.0)
    whole = json.dumps(view)
    texts = [e for e in view["stages"][0]["entries"] if e["kind"] == "text"]
    assert texts
    html = static_html.render(state, now=9000.0)
    assert len(whole) < 600_000
    assert len(html) < 600_000
    assert "\\u001b" not in whole
    assert "\x1b" not in html
    for made in (html, *("".join((*e["blocks"], *e["tail_blocks"])) for e in texts)):
        assert not re.search("<(img|script|iframe)", made)
        assert 'href="javascript' not in made
    assert "characters not shown" in html


def test_a_command_says_what_it_says() -> None:
    """A program's output is no Markdown: stars, hashes and spaces stay as they are."""
    box = VoidBoxSpec(name="analyst", command=("ls",))
    state = begin(RunRecord(id="r1", spec=RunSpec(stages=(Stage(box=box),)), created_at=100.0))
    text = "# total 4\n  **a**   b\n"
    state = played([AgentText(text=text), StageChanged(state="succeeded", output=text + "more")], state=state)
    html = static_html.render(state, now=200)
    assert f'<pre class="vbx-stderr">{text}' in html
    assert f"<pre>{text}more</pre>" in html
