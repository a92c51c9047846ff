"""Each agent in a real box with real MCP servers, against a scripted model: the adapter contract, proved once.

What the boxes need besides the image (agent CLIs, servers) is fetched here from npm and PyPI and stays in this
user's cache; where it cannot be had the tests are skipped and say why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab import Run, Skill, UserError, VoidBox, images
from voidbox_lab.agents import adapter
from voidbox_lab.client import Client
from voidbox_lab.settings import Settings
from voidbox_lab.spec import CliSkill, McpSkill
from voidbox_lab.spec.events import AgentLog, ModelCall, ToolCall, ToolResult

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

TIME = McpSkill(
    name="time",
    command=("mcp-server-time", "--local-timezone=UTC"),
    packages=("pypi:mcp-server-time==2026.10.19",),
    tools=("convert_time",),
)
GIT = McpSkill(name="git", command=("mcp-server-git",), packages=("pypi:mcp-server-git==2026.10.19",))
FILES = McpSkill(
    name="files",
    command=("mcp-server-filesystem", "/workspace"),
    packages=("npm:@modelcontextprotocol/server-filesystem@2026.8.31",),
)
GREETING = Skill(name="greeting", description="How to greet", body="Say good-day.\n")
NOON = {"source_timezone": "Asia/Tokyo", "time": "12:00", "target_timezone": "UTC"}
Call = tuple[str, dict[str, Any]]
Work = Callable[..., tuple[Run, dict[str, ToolResult]]]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Run a stage in a home of its own that calls tools one after the other; the run, and what each call was
    answered, by the tool's name as the events have it. Layers are in the shared cache; the daemon is ended."""
    cache = Settings.from_env().cache
    monkeypatch.setenv("VOIDBOX_HOME", str(tmp_path))
    monkeypatch.setenv("VOIDBOX_CACHE", str(cache))
    settings = Settings.from_env(dict(os.environ)).prepare()

    def run(agent: str, calls: list[Call], *skills: Any) -> tuple[Run, dict[str, ToolResult]]:
        lines = [json.dumps({"call": n, "tool": tool, "input": given}) for n, (tool, given) in enumerate(calls)]
        prompt = "\n".join(["Call these:", *lines])
        box = VoidBox(agent, agent=agent, model="scripted:tools", prompt=prompt, memory_mb=1024, timeout_s=600)
        box.spec = box.spec.model_copy(update={"skills": skills})
        # Here, where what cannot be fetched is a reason to skip, and not in the run.
        images.compose(settings, box.spec.rootfs(adapter(agent).layer))
        done = box.run()
        assert done.state == "succeeded", done.trouble or done.stages[agent].trouble
        bodies = [event.body for event in done.events()]
        names = {b.id: b.name for b in bodies if isinstance(b, ToolCall)}
        answers = {names[b.id]: b for b in bodies if isinstance(b, ToolResult)}
        assert len(answers) == len(names) == len(calls)
        metered = [b for b in bodies if isinstance(b, ModelCall)]
        assert len(metered) >= len(calls) + 1
        assert all(c.status == 200 and c.tokens.input > 0 and c.cost_usd == 0 for c in metered)
        stage = done.stages[agent]
        assert stage.tokens.total == sum(c.tokens.total for c in metered)
        assert (stage.box.isolation, stage.model_source) == ("tcg", "scripted") or stage.box.isolation == "kvm"
        assert stage.output is not None
        assert stage.output.startswith("The tools said:")
        return done, answers

    yield run
    with Client(settings) as client:
        client.shutdown()


def test_lab_agent(work: Work) -> None:
    """Three servers, of Python and node, beside its own tools; it is told of programs as of skills."""
    commit = "git -c user.name=a -c user.email=a@b commit -qm 'First one' --allow-empty"
    read = "cat ~/.claude/skills/*/SKILL.md; printenv ANTHROPIC_API_KEY; jq -n 6*7"
    _, said = work(
        "lab-agent",
        [
            ("bash", {"command": f"git init -q . && {commit}; {read}"}),
            ("mcp__time__convert_time", NOON),
            ("mcp__time__get_current_time", {"timezone": "UTC"}),
            ("mcp__git__git_log", {"repo_path": "/workspace", "max_count": 1}),
            ("mcp__files__write_file", {"path": "/workspace/output/a.txt", "content": "written"}),
            ("mcp__files__read_text_file", {"path": "/etc/shadow"}),
        ],
        GREETING,
        TIME,
        GIT,
        FILES,
        CliSkill(name="jq", packages=("deb:jq",), body="Quote filters.\n"),
    )
    bash = said["bash"].content
    assert "Say good-day." in bash
    assert "On the PATH of this machine: `jq`.\n\nQuote filters." in bash
    assert bash.endswith("\n42")
    assert "03:00:00+00:00" in said["mcp__time__convert_time"].content
    assert said["mcp__time__get_current_time"].content.startswith("There is no tool"), "not among those offered"
    assert "First one" in said["mcp__git__git_log"].content
    assert "Successfully wrote" in said["mcp__files__write_file"].content
    assert "Access denied" in said["mcp__files__read_text_file"].content
    assert [name for name, result in said.items() if result.is_error] == [
        "mcp__time__get_current_time",
        "mcp__files__read_text_file",
    ]


def test_claude_code(work: Work) -> None:
    """It finds its skill, calls its own tool and a server's; a tool that is not offered is refused."""
    _, said = work(
        "claude-code",
        [
            ("Bash", {"command": "tail -n 1 ~/.claude/skills/greeting/SKILL.md; id -un"}),
            ("mcp__time__convert_time", NOON),
            ("mcp__time__get_current_time", {"timezone": "UTC"}),
            ("Write", {"file_path": "/tmp/a.txt", "content": "written"}),
        ],
        GREETING,
        TIME,
    )
    assert said["Bash"].content.split() == ["Say", "good-day.", "agent"]
    assert "03:00:00+00:00" in said["mcp__time__convert_time"].content
    assert "denied" in said["mcp__time__get_current_time"].content
    assert "created successfully" in said["Write"].content


def test_codex(work: Work) -> None:
    """It finds its skill, runs a command without its token, and calls a server's tool."""
    done, said = work(
        "codex",
        [
            ("exec_command", {"cmd": "tail -n 1 ~/.codex/skills/greeting/SKILL.md; id -un; env | grep -c TOKEN"}),
            ("mcp__time__convert_time", NOON),
        ],
        GREETING,
        TIME,
    )
    assert said["command_execution"].content.split() == ["Say", "good-day.", "agent", "0", "[exit", "code", "1]"]
    assert "03:00:00+00:00" in said["mcp__time__convert_time"].content
    logs = [e.body.text for e in done.events() if isinstance(e.body, AgentLog)]
    assert not any("network" in text.lower() or "error sending" in text for text in logs)


def test_what_cannot_work_is_said_before_a_box_is_booted(work: Work) -> None:
    """An agent that nobody knows, and one that cannot reach the stage's model."""
    with pytest.raises(UserError, match="no-such-agent"):
        VoidBox("x", agent="no-such-agent", model="scripted:echo", prompt="p").run()
    with pytest.raises(UserError, match="not reached by the API 'responses'; use an agent that speaks messages"):
        VoidBox("x", agent="codex", model="anthropic:claude-sonnet-4-5", prompt="p").run()
