"""lab-agent's MCP client, against a server that does what servers do, and what they should not."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab_agent.agent_process import Ended, Place, place
from voidbox_lab.agents import adapter
from voidbox_lab.gateway import Library
from voidbox_lab.spec import McpSkill
from voidbox_lab.spec.events import ToolCall, ToolResult

SERVER = Path(__file__).with_name("mcp_server.py")
Connect = Callable[..., Any]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _gone(pid: int) -> bool:
    """Whether it ends soon: a killed process is gone a moment later."""
    until = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not _alive(pid)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Start a server in a mode, and wait for it; all are ended in the end."""
    from lab_agent.mcp.config import ServerConfig
    from lab_agent.mcp.servers import Servers

    with contextlib.ExitStack() as stack:

        def start(mode: str = "good", *, tools: Any = None, call_s: float = 20, start_s: float = 20) -> Any:
            config = ServerConfig("double", [sys.executable, str(SERVER), mode], {"MINE": "1"}, tools)
            servers = Servers([config], {"PATH": os.environ["PATH"]}, start_s=start_s, call_s=call_s)
            stack.callback(servers.kill)
            servers.connect()
            return servers

        yield start


def _tool(servers: Any, name: str) -> Any:
    return next(t for t in servers.tools if t.name == name)


def _failure(tool: Any, given: dict[str, Any]) -> str:
    from lab_agent.tools import ToolProblem

    with pytest.raises(ToolProblem) as caught:
        tool.call(given)
    return str(caught.value)


def test_tools_are_listed_over_pages_and_called(connect: Connect) -> None:
    """Also while the server pings, asks for what is not there, reports progress and prints nonsense."""
    servers = connect()
    names = ["add", "whoami", "slow", "picture", "grow", "die", "flood", "Odd_Name_"]
    assert [t.name for t in servers.tools] == [f"mcp__double__{n}" for n in names]
    assert _tool(servers, "mcp__double__add").call({"a": 2, "b": 3}) == "5"
    assert _tool(servers, "mcp__double__Odd_Name_").call({}) == '{"name":"Odd Name!"}'
    assert "it answered with an error: " in _failure(_tool(servers, "mcp__double__add"), {"a": 1, "b": "x"})


def test_what_is_no_text_is_a_note(connect: Connect) -> None:
    """And an error of the tool's own is one to the model."""
    assert _failure(_tool(connect(), "mcp__double__picture"), {}) == (
        "[image, image/png, 3 bytes: not shown]\n"
        "[resource file:///a]\nwords\n"
        "[resource file:///b, of an unknown type, 4 bytes: not shown]\n"
        "[resource 'c' at file:///c]\n"
        "[a part of type 'hologram': not shown]"
    )


def test_tools_that_change_are_read_again(connect: Connect) -> None:
    """Before the next question to the model."""
    from lab_agent.tools import Toolbox

    servers = connect()
    toolbox = Toolbox([])
    toolbox.join(servers)
    assert toolbox.call("mcp__double__grow", {}) == ("grown", False)
    assert "mcp__double__grown" in [t["name"] for t in toolbox.offered()]
    assert toolbox.call("mcp__double__grown", {}) == ('{"name":"grown"}', False)


def test_only_the_tools_a_stage_names_are_offered(connect: Connect) -> None:
    """By the server's own names."""
    assert [t.name for t in connect(tools=frozenset({"add", "Odd Name!"})).tools] == [
        "mcp__double__add",
        "mcp__double__Odd_Name_",
    ]


def test_a_call_is_bounded_and_the_next_one_works(connect: Connect) -> None:
    """The late answer is nobody's."""
    servers = connect(call_s=0.5)
    said = _failure(_tool(servers, "mcp__double__slow"), {"seconds": 1})
    assert said == "The MCP server 'double' was asked for 'slow': it did not answer within 0.5 s."
    time.sleep(1)
    assert _tool(servers, "mcp__double__slow").call({"seconds": 0}) == "at last"


def test_a_server_that_dies_is_said_to_be_gone(connect: Connect) -> None:
    """At once, and at every call after."""
    servers = connect()
    for name in ("die", "add"):
        said = _failure(_tool(servers, f"mcp__double__{name}"), {"a": 1, "b": 1})
        assert said == "The MCP server 'double' is gone: it ended with exit code 3; do without its tools."
    assert not servers.refreshed()


def test_a_server_that_floods_is_stopped(connect: Connect) -> None:
    """Long before the time a call may take."""
    begun = time.monotonic()
    said = _failure(_tool(connect(call_s=300), "mcp__double__flood"), {})
    assert "sent 10000 messages instead of an answer and was stopped" in said
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("gone", "it ended with exit code 7; its messages are in the log"),
        ("silent", r"it did not answer within [0-9.]+ s \(2 s for the start of all\)"),
        ("huge", "it wrote a message of more than 8 MiB and was stopped"),
        ("old", "it speaks revision '1999-01-01' of the protocol, which is not known here"),
        ("endless", "its list of tools has more than 64 pages"),
    ],
)
def test_a_server_that_does_not_start(connect: Connect, mode: str, said: str) -> None:
    """Is named, with why."""
    from lab_agent.mcp import McpProblem

    with pytest.raises(McpProblem, match=f"The MCP server 'double' did not start: {said}"):
        connect(mode, start_s=2 if mode == "silent" else 20)


def test_a_program_that_is_not_there() -> None:
    """Is named before anything waits."""
    from lab_agent.mcp import McpProblem
    from lab_agent.mcp.config import ServerConfig
    from lab_agent.mcp.servers import Servers

    with pytest.raises(McpProblem, match="'none' cannot be started: no-such-program: No such file"):
        Servers([ServerConfig("none", ["no-such-program"], {}, None)], dict(os.environ), start_s=1, call_s=1)


@pytest.mark.parametrize("mode", ["good", "child", "stubborn"])
def test_nothing_of_a_server_stays(connect: Connect, mode: str) -> None:
    """Whether it ends when told to, leaves children behind, or does not listen."""
    servers = connect(mode)
    env = json.loads(_tool(servers, "mcp__double__whoami").call({}))
    pid = int(env["pid"])
    children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert len(children) == (mode == "child")
    begun = time.monotonic()
    servers.end()
    assert time.monotonic() - begun < 10
    assert all(_gone(p) for p in [pid, *children])


def test_long_names_stay_apart() -> None:
    """Within what all model APIs take."""
    from lab_agent.mcp.server import qualified

    one, two = (qualified("server", "x" * 100 + end) for end in "ab")
    assert one != two
    assert len(one) == len(two) == 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no 'mcpServers'"),
        ('{"mcpServers": {"a": 1}}', "'a' is not an object"),
        ('{"mcpServers": {"a": {"url": "http://x"}}}', "not one over stdio"),
        ('{"mcpServers": {"a": {"type": "sse", "command": "x"}}}', "not one over stdio"),
        ('{"mcpServers": {"a": {"args": []}}}', "no command"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "no command"),
        ('{"mcpServers": {"a": {"command": "x", "args": [1]}}}', "no command"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"y": 1}}}}', "environment"),
        ('{"mcpServers": {"a": {"command": "x", "tools": "y"}}}', "tools"),
    ],
)
def test_configurations_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    """One sentence each."""
    from lab_agent.mcp import McpProblem, config

    (tmp_path / "mcp.json").write_text(text)
    with pytest.raises(McpProblem, match=said):
        config.read(str(tmp_path / "mcp.json"))
    with pytest.raises(McpProblem, match="cannot be read: No such file"):
        config.read(str(tmp_path / "none.json"))


def _skill(mode: str = "good", **more: Any) -> McpSkill:
    return McpSkill(name="double", command=(sys.executable, str(SERVER), mode), **more)


async def _run(p: Place, skill: McpSkill, *calls: dict[str, Any]) -> Ended:
    from voidbox_lab.agents.contract import mcp_config

    (p.home / "mcp.json").write_bytes(mcp_config([skill], filtered=True))
    prompt = "\n".join(["Do this:", *(json.dumps({"call": n, **call}) for n, call in enumerate(calls))])
    return await p.run("scripted:tools", prompt, "--mcp-config", "mcp.json")


@pytest.mark.anyio
async def test_a_session_with_a_server(tmp_path: Path) -> None:
    """The model is offered its tools and calls them; events are as for any tool; no token and no process leaks."""
    async with place(tmp_path) as p:
        ended = await _run(
            p,
            _skill(env={"MINE": "2"}, tools=("add", "whoami", "die")),
            {"tool": "mcp__double__add", "input": {"a": 20, "b": 22}},
            {"tool": "mcp__double__whoami", "input": {}},
            {"tool": "mcp__double__slow", "input": {"seconds": 0}},
            {"tool": "mcp__double__die", "input": {}},
        )
        assert [c.status for c in p.calls] == [200] * 5
    assert ended.code == 0, ended.stderr
    init = ended.events[0]
    assert init["mcp_servers"] == [{"name": "double", "status": "connected"}]
    assert [t for t in init["tools"] if t.startswith("mcp")] == [
        f"mcp__double__{n}" for n in ("add", "whoami", "die")
    ]
    parser = adapter("lab-agent").parser()
    bodies = [b for e in ended.events for b in parser.feed(json.dumps(e).encode())]
    assert next(b.name for b in bodies if isinstance(b, ToolCall)) == "mcp__double__add"
    added, env, slow, dead = (b for b in bodies if isinstance(b, ToolResult))
    assert (added.content, added.is_error) == ("42", False)
    shown = json.loads(env.content)
    assert shown["MINE"] == "2"
    assert not {"ANTHROPIC_API_KEY", "PYTHONPATH"} & set(shown)
    assert slow.is_error
    assert slow.content.startswith("There is no tool 'mcp__double__slow'")
    assert dead.is_error
    assert "is gone: it ended with exit code 3" in dead.content
    assert "wrote what is no message: 'this is no message'" in ended.stderr
    assert _gone(int(shown["pid"]))


@pytest.mark.anyio
async def test_a_session_without_its_server_does_not_begin(tmp_path: Path) -> None:
    """No question is asked of the model, and the answer says what is missing."""
    async with place(tmp_path, Library.default()) as p:
        ended = await _run(p, _skill("gone"))
        assert p.calls == []
    assert ended.code == 1
    assert ended.result["is_error"]
    assert ended.result["result"].startswith("The MCP server 'double' did not start: it ended with exit code 7")


@pytest.mark.anyio
async def test_sigterm_takes_the_servers_along(tmp_path: Path) -> None:
    """Also in the middle of a call."""
    async with place(tmp_path) as p:
        from voidbox_lab.agents.contract import mcp_config

        (tmp_path / "mcp.json").write_bytes(mcp_config([_skill("child")]))
        calls = [("whoami", {}), ("slow", {"seconds": 1000})]
        lines = [{"call": n, "tool": f"mcp__double__{t}", "input": i} for n, (t, i) in enumerate(calls)]
        prompt = "\n".join(map(json.dumps, lines))
        process = await p.start("scripted:tools", prompt, "--mcp-config", "mcp.json")
        assert process.stdout is not None
        seen = b""
        while b'"name":"mcp__double__slow"' not in seen:
            seen += await process.stdout.receive()
        pid = int(seen.split(b'\\"pid\\": \\"')[1].split(b"\\")[0])
        assert _alive(pid)
        process.terminate()
        assert await process.wait() == 143
        assert _gone(pid)
        await process.aclose()
