"""lab-agent as a process, against scripted models over HTTP: the loop, its events, its ends."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import anyio
import pandas as pd
import pytest
from vega_datasets import data

from tests.lab_agent.agent_process import TRACEPARENT, parsed, place
from voidbox_lab.agents import adapter
from voidbox_lab.gateway import Library
from voidbox_lab.spec import Skill
from voidbox_lab.spec.events import AgentText, ToolCall, ToolResult

pytestmark = pytest.mark.anyio


def _library(directory: Path, **scripts: dict[str, Any]) -> Library:
    directory.mkdir(parents=True, exist_ok=True)
    for name, script in scripts.items():
        (directory / f"{name}.yaml").write_text(json.dumps(script))  # JSON is YAML
    return Library(directory)


async def test_the_quickstart_end_to_end(tmp_path: Path) -> None:
    """A real tool loop; the numbers in the answer and in the file are those of pandas."""
    (tmp_path / "input").mkdir()
    shutil.copy(data.stocks.filepath, tmp_path / "input" / "stocks.csv")
    question = f"Which of these five stocks had the best risk-adjusted return? Use {tmp_path}/input/stocks.csv."
    async with place(tmp_path) as p:
        ended = await p.run("scripted:quickstart", question)
        assert [c.source for c in p.calls] == ["scripted"] * 4
    assert (ended.code, ended.result["is_error"], ended.result["num_turns"]) == (0, False, 4)

    prices = pd.read_csv(tmp_path / "input" / "stocks.csv", parse_dates=["date"], date_format="%b %d %Y")
    returns = prices.pivot(index="date", columns="symbol", values="price").pct_change(fill_method=None)
    sharpe = (returns.mean() / returns.std() * 12**0.5).sort_values(ascending=False)
    ranking = json.loads((tmp_path / "output" / "ranking.json").read_text())
    assert [row["symbol"] for row in ranking] == list(sharpe.index)
    for row in ranking:
        assert row["sharpe"] == pytest.approx(sharpe[row["symbol"]])
        assert row["months"] == returns[row["symbol"]].count()
        assert f"| {row['symbol']} | {sharpe[row['symbol']]:.2f} |" in ended.result["result"]
    assert ended.result["result"].startswith(f"**{sharpe.index[0]}** had the best risk-adjusted return")
    assert (tmp_path / "analysis.py").is_file()


async def test_its_events_are_read_by_the_adapters_parser(tmp_path: Path) -> None:
    """Init first, result last; text streamed once, calls and results paired, counts added up."""
    async with place(tmp_path) as p:
        ended = await p.run("scripted:shell", "```\necho one; echo two >&2\n```")
        total = sum(c.tokens.input for c in p.calls), sum(c.tokens.output for c in p.calls)
    assert ended.events[0]["subtype"] == "init"
    assert ended.events[0]["cwd"] == str(tmp_path)
    assert len({e["session_id"] for e in ended.events}) == 1
    assert len({e["uuid"] for e in ended.events}) == len(ended.events)
    usage = ended.result["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == total
    parser = adapter("lab-agent").parser()
    bodies = [b for e in ended.events for b in parser.feed(json.dumps(e).encode())]
    texts: dict[int, str] = {}
    for body in bodies:
        if isinstance(body, AgentText):
            texts[body.block] = texts.get(body.block, "") + body.text
    assert list(texts.values()) == ["I run the command.", "The command printed:\none\ntwo"]
    [call] = [b for b in bodies if isinstance(b, ToolCall)]
    [result] = [b for b in bodies if isinstance(b, ToolResult)]
    assert call.input == {"command": "echo one; echo two >&2"}
    assert (result.id, result.content, result.is_error) == (call.id, "one\ntwo", False)
    assert sum(isinstance(b, AgentText) for b in bodies) > 2, "text comes in pieces"
    finished = parser.finish(ended.code)
    assert (finished.output, finished.is_error, finished.turns) == ("The command printed:\none\ntwo", False, 2)


async def test_a_failing_tool_is_told_to_the_model(tmp_path: Path) -> None:
    """An exit code is a result for the model to deal with, not the agent's end."""
    async with place(tmp_path) as p:
        ended = await p.run("scripted:shell", "```\necho oops; exit 3\n```")
    assert ended.code == 0
    assert ended.of_type("user")[0]["message"]["content"][0]["is_error"] is True
    assert ended.result["result"] == "The command printed:\noops\n[exit code 3]"


async def test_the_environment_of_commands_holds_no_token(tmp_path: Path) -> None:
    """``env`` in a transcript would give it away. The trace that they are part of is in there."""
    async with place(tmp_path) as p:
        ended = await p.run("scripted:shell", "```\nenv; pwd\n```")
    assert "ANTHROPIC_API_KEY" not in ended.result["result"]
    assert "PYTHONPATH" not in ended.result["result"]
    assert f"TRACEPARENT={TRACEPARENT}" in ended.result["result"]
    assert str(tmp_path) in ended.result["result"]


async def test_the_prompt_from_standard_input(tmp_path: Path) -> None:
    """Larger than an argument can be."""
    async with place(tmp_path) as p:
        ended = await p.run("scripted:echo", "-", "--output-format", "stream-json", stdin=b"x" * 300_000)
        empty = await p.run("scripted:echo", "-", stdin=b" \n")
    assert len(ended.result["result"]) > 300_000
    assert (empty.code, empty.result["is_error"]) == (1, True)


async def test_text_output(tmp_path: Path) -> None:
    """Only the answer."""
    async with place(tmp_path) as p:
        env = p.env("scripted:echo")
        done = await anyio.run_process(p.argv("hi", "--output-format", "text"), env=env, cwd=tmp_path)
    assert done.stdout == b"You said: hi\n"


async def test_overload_is_retried(tmp_path: Path) -> None:
    """Twice 529, then an answer; the retries are seen."""
    async with place(tmp_path) as p:
        ended = await p.run("scripted:flaky", "go")
        assert [c.status for c in p.calls] == [529, 529, 200]
    assert ended.code == 0
    retries = [e for e in ended.of_type("system") if e["subtype"] == "api_retry"]
    assert [r["attempt"] for r in retries] == [1, 2]


async def test_failure_for_good(tmp_path: Path) -> None:
    """Retries are bounded; the reason is in the result, the status says failure."""
    async with place(tmp_path) as p:
        ended = await p.run("scripted:down", "go")
        assert len(p.calls) == 6
    assert (ended.code, ended.result["is_error"]) == (1, True)
    assert "500" in ended.result["result"]
    assert "Down, as the script says." in ended.result["result"]
    assert "Down, as the script says." in ended.stderr


async def test_what_cannot_get_better_is_not_retried(tmp_path: Path) -> None:
    """An unknown model, no server at all, no URL."""
    async with place(tmp_path) as p:
        unknown = await p.run("scripted:nonesuch", "go")
        assert (unknown.code, len(p.calls)) == (1, 1)
        p.url = "ftp://127.0.0.1"
        no_url = await p.run("scripted:echo", "go")
    assert not [e for e in unknown.events + no_url.events if e.get("subtype") == "api_retry"]
    assert "no scripted model" in unknown.result["result"]
    assert "not an http:// URL" in no_url.result["result"]


async def test_turns_are_bounded(tmp_path: Path) -> None:
    """A model that never stops calling tools is stopped."""
    library = _library(tmp_path / "scripts", loop={"turns": [{"say": "Again.", "use": [{"shell": "true"}]}]})
    async with place(tmp_path, library) as p:
        ended = await p.run("scripted:loop", "go", "--max-turns", "3")
        assert len(p.calls) == 3
    assert (ended.code, ended.result["subtype"], ended.result["num_turns"]) == (1, "error_max_turns", 3)


async def test_several_calls_in_one_turn(tmp_path: Path) -> None:
    """All are run, in order, and answered in one message."""
    script = {
        "turns": [
            {"use": [{"write": {"path": str(tmp_path / "d/x.txt"), "content": "ä"}}, {"shell": "cat d/x.txt"}]},
            {"say": "{{ results | length }}: {{ result }}"},
        ]
    }
    async with place(tmp_path, _library(tmp_path / "scripts", two=script)) as p:
        ended = await p.run("scripted:two", "go")
    assert ended.result["result"] == "2: ä"
    assert [e["message"]["content"][0]["name"] for e in ended.of_type("assistant")[:2]] == ["write", "bash"]


async def test_skills_are_in_the_system_prompt_and_read_on_demand(tmp_path: Path) -> None:
    """Name, description and path are told; the body is a file away."""
    skill = Skill(
        name="returns", description='How to "compute": returns, ' + "long " * 40 + "é😀", body="Secret sauce.\n"
    )
    path = tmp_path / ".claude/skills/returns/SKILL.md"
    path.parent.mkdir(parents=True)
    path.write_text(skill.to_markdown(), encoding="utf-8")
    async with place(tmp_path) as p:
        ended = await p.run("scripted:shell", f"```\ncat {path}\n```")
    assert ended.events[0]["skills"] == ["returns"]
    assert "Secret sauce." in ended.result["result"]


async def test_sigterm(tmp_path: Path) -> None:
    """Ends at once, also in a tool: result event, status 143, no child left."""
    marker = tmp_path / "started"
    async with place(tmp_path) as p:
        process = await p.start("scripted:shell", f"```\ntouch {marker}; sleep 1000\n```")
        with anyio.fail_after(30):
            while not marker.exists():
                await anyio.sleep(0.02)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            output = b"".join([chunk async for chunk in process.stdout])
            assert await process.wait() == 143
        await process.aclose()
    events = parsed(output)
    assert events[-1]["type"] == "result"
    assert events[-1]["subtype"] == "error_terminated"
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)


async def test_sigterm_while_the_model_hangs(tmp_path: Path) -> None:
    """The call is given up, and the gateway learns of it."""
    async with place(tmp_path) as p:
        process = await p.start("scripted:hang", "go")
        assert process.stdout is not None
        with anyio.fail_after(30):
            await process.stdout.receive()  # init
            await anyio.sleep(0.2)
            process.terminate()
            assert await process.wait() == 143
            while not p.calls:
                await anyio.sleep(0.02)
        await process.aclose()
        assert p.calls[0].status == 0


async def test_nobody_reads(tmp_path: Path) -> None:
    """A closed pipe ends it quietly."""
    async with place(tmp_path) as p:
        pipeline = ["bash", "-c", '"$@" | head -n 1 > /dev/null; echo ${PIPESTATUS[0]}', "_", *p.argv("go")]
        with anyio.fail_after(30):
            done = await anyio.run_process(pipeline, env=p.env("scripted:slow"), cwd=tmp_path)
    assert (done.stdout, done.stderr) == (b"1\n", b"")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no prompt"),
        (["-p"], "needs a value"),
        (["--frobnicate"], "unknown option"),
        (["-p", "x", "--max-turns", "many"], "number from 1"),
        (["-p", "x", "--output-format", "xml"], "stream-json or text"),
    ],
)
async def test_a_wrong_command_line(tmp_path: Path, argv: list[str], said: str) -> None:
    """Status 2, one line and the usage."""
    async with place(tmp_path) as p:
        command = [*p.argv("x")[:4], *argv]
        done = await anyio.run_process(command, env=p.env("scripted:echo"), check=False)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert done.stdout == b""


async def test_it_imports_little() -> None:
    """What it must not import, because an emulated CPU pays for it at every start."""
    async with place(Path("/")) as p:
        code = "import sys, lab_agent.main; print(*sys.modules)"
        done = await anyio.run_process([p.argv("x")[0], "-S", "-c", code], env=p.env("scripted:echo"))
    heavy = {
        "http",
        "http.client",
        "urllib.request",
        "email",
        "ssl",
        "argparse",
        "subprocess",
        "typing",
        "asyncio",
    }
    assert not heavy & set(done.stdout.decode().split())


async def test_importing_has_no_side_effects() -> None:
    """A warm process imports it, forks, and calls main."""
    async with place(Path("/")) as p:
        code = (
            "import io, os, signal;"
            "before = signal.getsignal(signal.SIGTERM), os.listdir('/proc/self/fd');"
            "from lab_agent.main import main;"
            "assert before == (signal.getsignal(signal.SIGTERM), os.listdir('/proc/self/fd'));"
            "out = io.BytesIO();"
            "status = main(['-p', '-', '--output-format', 'text'], dict(os.environ), io.BytesIO(b'hi'), out);"
            "assert signal.getsignal(signal.SIGTERM) == before[0];"
            "print(status, out.getvalue())"
        )
        done = await anyio.run_process([p.argv("x")[0], "-S", "-c", code], env=p.env("scripted:echo"), check=False)
    assert done.stdout.decode().strip() == r"0 b'You said: hi\n'", done.stderr.decode()
