"""Runs from the command line: listed, shown, followed, stopped, forgotten. Real processes and store, no VMs."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import VOIDBOX, Place, fill, spec
from tests.daemon.test_life import until
from voidbox_lab.client import ensure_daemon
from voidbox_lab.errors import TroubleKind
from voidbox_lab.spec import InputFile, Tokens, Trouble, digest_bytes
from voidbox_lab.spec.events import (
    AgentLog,
    AgentText,
    Body,
    ModelCall,
    RunChanged,
    StageChanged,
    ToolCall,
    ToolResult,
)

OK, TWIN, BIG, MANY = "run-aa0000000001", "run-aa0000000002", "run-bb0000000000", "run-cc0000000000"
FAILED: dict[TroubleKind, str] = {
    "command": "run-f10000000000",
    "user": "run-f20000000000",
    "provider": "run-f30000000000",
    "limit": "run-f40000000000",
    "cancelled": "run-f50000000000",
}
CODES: dict[TroubleKind, int] = {"command": 1, "user": 2, "provider": 3, "limit": 4, "cancelled": 130}
WHOLE = "".join(f"line {n}\n" for n in range(20_000)) + "the end \x1b[2J\n"
HOSTILE = "\x1b]0;owned\x07red \x1b[31m\u202etxet"
LONG = "run-dd0000000000"
EVENTS = 30_000
"""Of the long run, 2 kB each: what a reader that kept them could not hide."""


def ended(*events: tuple[str | None, Body], stages: tuple[str, ...] = ("one",)) -> list[tuple[str | None, Body]]:
    """The events of a run that succeeds, with `events` in the middle."""
    begun: list[tuple[str | None, Body]] = [(None, RunChanged(state="running"))]
    begun += [(s, StageChanged(state="running", attempt=1)) for s in stages]
    last: list[tuple[str | None, Body]] = [
        (s, StageChanged(state="succeeded", output=f"{s} [bold]done")) for s in stages
    ]
    return [*begun, *events, *last, (None, RunChanged(state="succeeded"))]


@pytest.fixture(scope="module")
def place(home: Place) -> Place:
    """A store with runs of every kind, and the daemon that has it open."""
    call = ModelCall(
        request="r1", model="claude-x", source="live", status=200, duration_s=1.5, cost_usd=0.0123,
        tokens=Tokens(input=1200, output=34),
    )  # fmt: skip
    fill(home.settings, OK, spec("one", name="weather"), ended(
        ("one", AgentText(text="Let me ")), ("one", AgentText(text="see.\nThen ")),
        ("one", ToolCall(id="t1", name="bash", input={"command": "ls -l\n/tmp"})),
        ("one", ToolResult(id="t1", content="a\nb", is_error=False)),
        ("one", ToolResult(id="t2", content="no such file", is_error=True)),
        ("one", call), ("one", AgentLog(text=HOSTILE)), ("one", AgentText(text=HOSTILE, block=1)),
    ))  # fmt: skip
    fill(home.settings, TWIN, spec("one"), ended())
    file = InputFile(digest=digest_bytes(WHOLE.encode()), size=len(WHOLE))
    fill(home.settings, BIG, spec("one"), [
        (None, RunChanged(state="running")),
        ("one", StageChanged(state="succeeded", output=WHOLE[:10_000], output_file=file)),
        (None, RunChanged(state="succeeded")),
    ])  # fmt: skip
    many = tuple(f"s{n}" for n in range(400))
    broken = Trouble(kind="limit", message="It took too long.", limit="time")
    fill(home.settings, MANY, spec(*many), [
        (None, RunChanged(state="running")),
        *((name, StageChanged(state="failed" if name == "s399" else "succeeded",
                              trouble=broken if name == "s399" else None)) for name in many),
        (None, RunChanged(state="failed", trouble=broken)),
    ])  # fmt: skip
    for kind, run in FAILED.items():
        trouble = Trouble(kind=kind, message=f"It is \x1b[31m{kind}.", cause=None)
        state = "cancelled" if kind == "cancelled" else "failed"
        fill(home.settings, run, spec("one"), [
            (None, RunChanged(state="running")), ("one", StageChanged(state=state, trouble=trouble)),
            (None, RunChanged(state=state, trouble=trouble)),
        ])  # fmt: skip
    chatter = [("one", AgentText(text=f"{n} " + "x" * 2000 + "\n")) for n in range(EVENTS)]
    fill(home.settings, LONG, spec("one"), ended(*chatter))
    ensure_daemon(home.settings)
    with home.client() as client:
        assert client.upload(WHOLE.encode()) == file
    return home


# -- list ----------------------------------------------------------------------------------------


def test_bare_runs_is_a_list(place: Place) -> None:
    """Newest first, with name, states, stages done, tokens, cost."""
    done = place.voidbox("runs", "--limit", "1000")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "weather" in lines[OK]
    assert "1/1" in lines[OK]
    assert "1,234" in lines[OK]
    assert "$0.0123" in lines[OK]
    assert "400/400" in lines[MANY]
    assert [r["id"] for r in place.json("runs", "--state", "failed", "--limit", "2")] == [
        FAILED["limit"],
        FAILED["provider"],
    ]


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--limit", "0"], "--limit 0"),
        (["--state", "done"], "succeeded"),
        (["--state", "failed", "prune", "--older-than", "1s"], "runs prune"),
        (["prune", "--older-than", "soon"], "30d"),
        (["prune", "--state", "running"], "never pruned"),
        (["rm"], "RUN"),
    ],
)
def test_what_runs_refuses(place: Place, args: list[str], word: str) -> None:
    """With a sentence that says what would do. An option of the list must not be taken for one of prune's."""
    before = len(place.json("runs", "--limit", "1000"))
    done = place.voidbox("runs", *args)
    assert done.returncode == 2
    assert word in done.stderr
    assert len(place.json("runs", "--limit", "1000")) == before


# -- which ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [BIG, "run-bb", "bb"])
def test_a_beginning_is_enough(place: Place, word: str) -> None:
    """With or without what all ids begin with."""
    assert place.json("show", word)["id"] == BIG


def test_ambiguity_names_the_candidates(place: Place) -> None:
    """And changes nothing, even where another word is good."""
    done = place.voidbox("runs", "rm", BIG, "aa00")
    assert done.returncode == 2
    assert OK in done.stderr
    assert TWIN in done.stderr
    assert place.json("show", BIG)["id"] == BIG


@pytest.mark.parametrize(
    ("command", "word"),
    [
        *(("show", word) for word in ("zz", "", "run-ffffffffffff", "%2e%2e", "a\x1b[31m")),
        *((command, "run-zz") for command in ("logs", "cancel", "pause", "resume")),
    ],
)
def test_no_such_run(place: Place, command: str, word: str) -> None:
    """Is a user error in every command."""
    done = place.voidbox(command, word)
    assert done.returncode == 2
    assert done.stderr.startswith("user error: ")
    assert "\x1b" not in done.stderr


# -- show ----------------------------------------------------------------------------------------


def test_show_tells_of_each_stage(place: Place) -> None:
    """What it cost, what it answered; an agent's words are not markup."""
    text = place.voidbox("show", OK).stdout
    for word in (
        OK,
        "weather",
        "one",
        "succeeded",
        "1,234 tokens (1,200 in, 34 out)",
        "$0.0123",
        "one [bold]done",
    ):
        assert word in text
    text = place.voidbox("show", FAILED["limit"]).stdout
    assert "limit: It is \\x1b[31mlimit." in text
    assert "\x1b" not in text


def test_a_long_output_is_shown_in_part_and_printed_whole(place: Place) -> None:
    """Byte for byte to a pipe, from the artifact that has all of it."""
    text = place.voidbox("show", BIG).stdout
    assert len(text) < 4000
    assert f"voidbox show {BIG} --stage one --output" in text
    whole = place.voidbox("show", BIG, "--stage", "one", "--output", text=False)
    assert whole.stdout == WHOLE.encode()
    assert place.voidbox("show", BIG, "--output", "--json").returncode == 2


def test_a_whole_output_does_nothing_to_a_terminal(place: Place) -> None:
    """A guest wrote it: control characters are written out."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*VOIDBOX, "show", BIG, "--output"],
        env=place.env, stdout=theirs, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
        assert process.wait(30) == 0
    os.close(ours)
    assert b"the end \\x1b[2J" in shown
    assert b"\x1b" not in shown


def test_many_stages_are_a_bounded_table(place: Place) -> None:
    """The failed one is in it, although it is the last."""
    text = place.voidbox("show", MANY).stdout
    assert len(text.splitlines()) < 60
    assert "s399" in text
    assert "399 succeeded, 1 failed" in text
    assert "--all" in text
    assert len(place.voidbox("show", MANY, "--all").stdout.splitlines()) > 400
    assert place.json("show", MANY, "--stage", "s399")["trouble"]["kind"] == "limit"
    unknown = place.voidbox("show", MANY, "--stage", "s400")
    assert unknown.returncode == 2
    assert "s0, s1" in unknown.stderr


# -- logs ----------------------------------------------------------------------------------------


def test_logs_are_lines_in_order(place: Place) -> None:
    """Text is put together, tools are in short, calls have their price, and nothing reaches the terminal raw."""
    done = place.voidbox("logs", OK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[run] run running",
        "[vm:one] running",
        "[vm:one] Let me see.",
        "[vm:one] Then ",
        "[vm:one] > bash ls -l /tmp",
        "[vm:one] < a b",
        "[vm:one] ! failed: no such file",
        "[vm:one] model claude-x (live): 1,234 tokens (1,200 in, 34 out), $0.0123, 1.5 s",
        "[vm:one] stderr: \\x1b]0;owned\\x07red \\x1b[31m\\u202etxet",
        "[vm:one] \\x1b]0;owned\\x07red \\x1b[31m\\u202etxet",
        "[vm:one] succeeded",
        "[run] run succeeded",
    ]


def test_logs_as_json_lines(place: Place) -> None:
    """Every event, whole, in its order."""
    lines = place.voidbox("logs", OK, "--json").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert events[8]["body"]["text"] == HOSTILE


def test_logs_of_a_part(place: Place) -> None:
    """By number, type, stage and from the end."""
    assert len(place.voidbox("logs", OK, "--since", "10").stdout.splitlines()) == 2
    assert len(place.voidbox("logs", OK, "--tail", "1").stdout.splitlines()) == 1
    assert place.voidbox("logs", OK, "--tail", "0").stdout == ""
    calls = place.voidbox("logs", OK, "--type", "tool_call,tool_result").stdout.splitlines()
    assert [line[9] for line in calls] == [">", "<", "!"]
    assert place.voidbox("logs", MANY, "--stage", "s399").stdout.splitlines() == [
        "[vm:s399] failed, limit error: It took too long."
    ]
    for args, word in (
        (["--type", "texts"], "tool_call"),
        (["--stage", "two"], "'two'"),
        (["--since", "-1"], "since"),
    ):
        done = place.voidbox("logs", OK, *args)
        assert done.returncode == 2
        assert word in done.stderr


@pytest.mark.parametrize("kind", CODES)
def test_following_ends_with_the_runs_own_code(place: Place, kind: TroubleKind) -> None:
    """As `voidbox run` would; without -f reading succeeded."""
    assert place.voidbox("logs", FAILED[kind], "-f").returncode == CODES[kind]
    assert place.voidbox("logs", FAILED[kind]).returncode == 0
    assert place.voidbox("logs", OK, "-f", "--json").returncode == 0


def test_a_long_run_streams_in_bounded_memory(place: Place) -> None:
    """60 MB of text go through a process that hardly grows for them."""

    def peak_kb(at: int, *args: str) -> int:
        """When line `at` is there; after it there is more to write than a pipe holds, so the process lives."""
        peak = 0
        with place.start("logs", LONG, *args) as process:
            assert process.stdout is not None
            for number, _ in enumerate(process.stdout, 1):
                if number == at:
                    # Not ru_maxrss, which a process inherits from the one that started it.
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
        assert process.returncode == 0
        assert number == (EVENTS + 4 if not args else 200)
        return peak

    few, many = peak_kb(100, "--tail", "200"), peak_kb(EVENTS - 100)
    assert many < few + 8 * 1024, (few, many)


def test_a_reader_that_leaves_is_no_error(place: Place) -> None:
    """``voidbox logs RUN | head -1``."""
    with place.start("logs", LONG) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 0


def test_logs_of_what_runs(place: Place) -> None:
    """Without -f it ends at once; with -f it shows what comes, and Ctrl-C leaves the run alone."""
    with place.client() as client:
        run = client.submit(spec("slow-a")).id
        until(lambda: client.run(run).stages["slow-a"].state == "running", 20)
    began = time.monotonic()
    done = place.voidbox("logs", run)
    assert done.returncode == 0
    assert "[vm:slow-a] running" in done.stdout
    assert time.monotonic() - began < 20
    with place.start("logs", "@last", "-f") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "begun" in line or "running" in line:
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "left as it is" in said
    assert place.json("show", run)["state"] == "running"
    # And a follower sees the end that somebody else asks for, with its code.
    with place.start("logs", run, "-f") as process:
        cancelled = place.json("cancel", run)
        out, said = process.communicate(timeout=30)
    assert [(r["id"], r["state"]) for r in cancelled] == [(run, "cancelled")]
    assert process.returncode == 130, said
    assert out.splitlines()[-1].startswith("[run] run cancelled")


# -- cancel, pause, resume -----------------------------------------------------------------------


def test_cancel_waits_until_it_is_over(place: Place) -> None:
    """Several at once, one of which had ended; and it can be told not to wait."""
    with place.client() as client:
        first, second = (client.submit(spec("slow-b")).id for _ in range(2))
        done = place.voidbox("cancel", first, OK)
        assert (done.returncode, done.stdout) == (0, f"{first}  cancelled\n{OK}  succeeded\n")
        assert place.voidbox("cancel", "--no-wait", second).returncode == 0
        until(lambda: client.run(second).state == "cancelled", 20)


def test_pause_and_resume(place: Place) -> None:
    """What is at work goes on, and following a resumed run gives its code."""
    with place.client() as client:
        run = client.submit(spec("slow-c")).id
        until(lambda: client.run(run).state == "running", 20)
        assert place.json("pause", run)["state"] == "paused"
        assert place.voidbox("resume", run).stdout == f"{run}  running\n"
        assert place.json("pause", run)["state"] == "paused"
        with place.start("resume", run, "-f", "--json") as process:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            assert first["body"] == {"type": "run", "state": "running", "trouble": None}
            client.cancel(run)
            process.communicate(timeout=30)
        assert process.returncode == 130
        done = place.voidbox("resume", run)
        assert done.returncode == 2
        assert "ended" in done.stderr


# -- rm, prune (last: they take runs away) -------------------------------------------------------


def test_rm_and_prune(place: Place) -> None:
    """Nothing goes in a dry run; one that runs is refused; the rest goes as asked."""
    with place.client() as client:
        run = client.submit(spec("slow-d")).id
        done = place.voidbox("runs", "rm", TWIN, run, "--json")
        assert done.returncode == 2
        assert json.loads(done.stdout) == {"removed": [TWIN]}
        assert json.loads(done.stderr)["error"]["cause"] == "run-not-ended"
        would = place.json("runs", "prune", "--state", "failed", "--keep", "1", "--dry-run")
        assert would["dry_run"] is True
        assert len(would["runs"]) == 4
        done = place.voidbox("runs", "prune", "--state", "failed", "--keep", "1")
        assert "removed 4 runs" in done.stdout
        assert [r["id"] for r in place.json("runs", "--state", "failed")] == [FAILED["limit"]]
        assert place.json("runs", "prune", "--older-than", "30d")["runs"] == []
        client.cancel(run)
