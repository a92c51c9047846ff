"""How agents are started: command lines, environment, skills as files, MCP servers, unknown names."""

from __future__ import annotations

import json
import tomllib

import pytest

from voidbox_lab.agents import adapter, names
from voidbox_lab.agents.contract import skill_directory
from voidbox_lab.errors import UserError
from voidbox_lab.spec import CliSkill, McpSkill, Model, OciSkill, Skill, VoidBoxSpec
from voidbox_lab.spec.capability import Capability

SKILL = Skill(name="price-history", description="How to: read", body="Read it.\n")
URL, TOKEN = "http://127.0.0.1:8129", "the-token"
TIME = McpSkill(name="time", command=("mcp-server-time", "--local-timezone=UTC"), env={"LEVEL": 'a "b"\x7f\n'})
GIT = McpSkill(name="git-log", command=("mcp-server-git",), tools=("git_log", "git.show"))


def _stage(model: str, prompt: str = "Do it.", skills: tuple[Capability, ...] = (SKILL,)) -> VoidBoxSpec:
    return VoidBoxSpec(name="analyst", prompt=prompt, model=Model.parse(model), skills=skills)


@pytest.mark.parametrize("name", names())
def test_every_adapter(name: str) -> None:
    """Prompt by standard input, token only in the environment, skills where the CLI looks for them."""
    agent = adapter(name)
    assert agent.name == name
    prompt = "x" * 500_000
    launch = agent.prepare(_stage("anthropic:claude-sonnet-4-5", prompt), URL, TOKEN)
    assert launch.stdin == prompt.encode()
    assert sum(map(len, launch.argv)) < 1000
    assert TOKEN not in " ".join(launch.argv)
    assert TOKEN in launch.env.values()
    assert not any(TOKEN.encode() in data for data in launch.files.values())
    assert URL in str(launch.env) + str(launch.files)
    assert "claude-sonnet-4-5" in launch.argv
    path = f"{skill_directory(agent, SKILL)}/SKILL.md"
    assert path.startswith("/home/agent/.")
    assert Skill.from_markdown(launch.files[path].decode()) == SKILL
    assert agent.parser() is not agent.parser()


@pytest.mark.parametrize("name", names())
def test_a_stage_has_exactly_the_skills_it_names(name: str) -> None:
    """None named, none written, no server started."""
    agent = adapter(name)
    launch = agent.prepare(_stage("scripted:echo", skills=()), URL, TOKEN)
    assert not [path for path in launch.files if path.startswith(agent.skills_root)]
    assert "mcp" not in str(launch.argv)
    assert b"mcp_servers" not in b"".join(launch.files.values())


@pytest.mark.parametrize("name", names())
def test_programs_and_images_are_told_to_the_agent(name: str) -> None:
    """As skills: what is there, where, and how to use it."""
    tools = (
        CliSkill(name="jq", packages=("deb:jq",), description="JSON by path", body="Use -r.\n"),
        CliSkill(name="net", packages=("deb:curl",), commands=("curl", "curl-config")),
        OciSkill(name="models", image="registry.example/models:1"),
    )
    agent = adapter(name)
    files = agent.prepare(_stage("scripted:echo", skills=tools), URL, TOKEN).files
    told = [Skill.from_markdown(files[f"{agent.skills_root}/{t.name}/SKILL.md"].decode()) for t in tools]
    assert [(s.name, s.description) for s in told] == [
        ("jq", "JSON by path"),
        ("net", "On the PATH of this machine: `curl`, `curl-config`."),
        ("models", "Read-only in /skills/models: the files of the image registry.example/models:1."),
    ]
    assert told[0].body == "On the PATH of this machine: `jq`.\n\nUse -r.\n"


def test_lab_agent_is_in_every_image_and_the_others_are_layers() -> None:
    """The default needs nothing besides the image."""
    assert names() == ["lab-agent", "claude-code", "codex"]
    assert VoidBoxSpec.model_fields["agent"].default == "lab-agent"
    assert [adapter(name).layer for name in names()] == [None, "claude-code", "codex"]


def test_claude_code_is_kept_from_phoning_home() -> None:
    """And is not told names of other providers' models, which it would not know."""
    launch = adapter("claude-code").prepare(_stage("ollama:qwen3"), URL, TOKEN)
    assert launch.env["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"
    assert launch.env["DISABLE_AUTOUPDATER"] == "1"
    assert "--model" not in launch.argv
    assert "--dangerously-skip-permissions" in launch.argv


def test_codex_is_kept_from_phoning_home() -> None:
    """And reads where the model is from a file of its own."""
    launch = adapter("codex").prepare(_stage("openai:gpt-5"), URL, TOKEN)
    config = tomllib.loads(launch.files["/home/agent/.codex/config.toml"].decode())
    provider = config["model_providers"][config["model_provider"]]
    assert (provider["base_url"], provider["wire_api"]) == (f"{URL}/v1", "responses")
    assert launch.env[provider["env_key"]] == TOKEN
    assert config["shell_environment_policy"]["exclude"] == [provider["env_key"]]
    assert not config["check_for_update_on_startup"]
    assert not any(config[key]["enabled"] for key in ("analytics", "feedback"))
    assert not any(config["features"].values())


@pytest.mark.parametrize("name", ["lab-agent", "claude-code"])
def test_servers_as_a_file(name: str) -> None:
    """In claude-code's form; lab-agent finds the tools that are offered there as well."""
    launch = adapter(name).prepare(_stage("anthropic:claude-sonnet-4-5", skills=(TIME, GIT)), URL, TOKEN)
    path = launch.argv[launch.argv.index("--mcp-config") + 1]
    servers = json.loads(launch.files[path])["mcpServers"]
    assert servers["time"] == {
        "command": "mcp-server-time",
        "args": ["--local-timezone=UTC"],
        "env": dict(TIME.env),
    }
    offered = {"tools": ["git_log", "git.show"]} if name == "lab-agent" else {}
    assert servers["git-log"] == {"command": "mcp-server-git", "args": [], "env": {}, **offered}
    assert launch.env["MCP_TIMEOUT"] == "120000"


def test_claude_code_refuses_tools_that_are_not_offered() -> None:
    """In a mode where all else has to be allowed by name."""
    launch = adapter("claude-code").prepare(_stage("ollama:qwen3", skills=(TIME, GIT)), URL, TOKEN)
    assert "--dangerously-skip-permissions" not in launch.argv
    assert launch.argv[launch.argv.index("--permission-mode") + 1] == "dontAsk"
    allowed = launch.argv[launch.argv.index("--allowedTools") + 1].split(",")
    assert [a for a in allowed if a.startswith("mcp")] == [
        "mcp__time",
        "mcp__git-log__git_log",
        "mcp__git-log__git_show",
    ]
    assert {"Bash", "Read", "Write", "Edit"} <= set(allowed)
    assert "--strict-mcp-config" in launch.argv
    assert launch.env["ENABLE_TOOL_SEARCH"] == "false"


def test_codex_has_servers_in_its_configuration() -> None:
    """Required, bounded, whatever characters are in their environment."""
    launch = adapter("codex").prepare(_stage("openai:gpt-5", skills=(TIME, GIT)), URL, TOKEN)
    servers = tomllib.loads(launch.files["/home/agent/.codex/config.toml"].decode())["mcp_servers"]
    assert servers["time"] == {
        "command": "mcp-server-time",
        "args": ["--local-timezone=UTC"],
        "env": dict(TIME.env),
        "required": True,
        "startup_timeout_sec": 120,
        "tool_timeout_sec": 300,
    }
    assert servers["git-log"]["enabled_tools"] == ["git_log", "git.show"]


def test_an_unknown_agent() -> None:
    """Named, with those that are known."""
    with pytest.raises(UserError, match=r"no agent 'clod'; use one of lab-agent, claude-code, codex"):
        adapter("clod")
