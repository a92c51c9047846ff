"""What an agent adapter is. An adapter knows one CLI; it starts nothing and reads no clock.

Its input from a box is hostile: a parser is fed lines that anybody in the box may have written, so it
bounds them, never raises on them, and believes an agent's success only if the exit code agrees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from voidbox_lab.spec import CliSkill, McpSkill, OciSkill, Skill, VoidBoxSpec
from voidbox_lab.spec.events import Body
from voidbox_lab.spec.skill import SKILL_FILE

ModelApi = Literal["messages", "responses"]
"""Anthropic's Messages, OpenAI's Responses."""
HOME = "/home/agent"
"""Home of the guest's user `agent`, who runs every agent."""
CLAUDE_SKILLS = f"{HOME}/.claude/skills"
"""Where claude-code looks for skills, and lab-agent as well."""
MCP_FILE = f"{HOME}/.voidbox/mcp.json"
"""The MCP servers of a stage, for agents that are given them as a file."""
MCP_START_S = 120
"""Bound on the start of a stage's MCP servers, in seconds: an interpreter under an emulated CPU takes many."""
MCP_CALL_S = 300
"""Bound on one call of an MCP tool, in seconds."""
MCP_BOUNDS = {"MCP_TIMEOUT": f"{MCP_START_S}000", "MCP_TOOL_TIMEOUT": f"{MCP_CALL_S}000"}
"""The same as claude-code and lab-agent take them from the environment, in milliseconds."""
_MAX_DESCRIPTION = 1024


@dataclass(frozen=True)
class Launch:
    """How an agent is started in its box."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """Added to the guest's own; holds the stage's token and no real key."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Absolute path in the guest to content, put there before."""
    stdin: bytes | None = None


@dataclass(frozen=True)
class AgentResult:
    """What an agent's output amounted to."""

    output: str | None
    """The final answer, or what the agent said about its failure; None: nothing."""
    is_error: bool
    turns: int = 0
    """Model answers, as the agent counted them. The gateway's count is the one to trust."""


class Parser(Protocol):
    """Reads one agent's standard output. One per run of an agent."""

    @property
    def reads_lines(self) -> bool:
        """Whether it is fed line by line; else as the bytes come."""
        ...

    def feed(self, line: bytes) -> Sequence[Body]:
        """The events in one line, without its line break, or in some bytes. Never raises."""
        ...

    def finish(self, exit_code: int | None) -> AgentResult:
        """The result, once the agent has ended with `exit_code` (None: killed)."""
        ...


class Adapter(Protocol):
    """One agent CLI."""

    @property
    def name(self) -> str:
        """As in `VoidBoxSpec.agent`."""
        ...

    @property
    def layer(self) -> str | None:
        """The image layer that holds the CLI; None: every image has it."""
        ...

    @property
    def api(self) -> ModelApi | None:
        """The model API it speaks; None: any."""
        ...

    @property
    def skills_root(self) -> str:
        """The directory in the box where it looks for skills; see `skill_directory`."""
        ...

    def prepare(self, stage: VoidBoxSpec, base_url: str, token: str) -> Launch:
        """How to start it for `stage`.

        `base_url` is the gateway's address inside the box (no ``/v1``), `token` the stage's.
        """
        ...

    def parser(self) -> Parser:
        """A new parser."""
        ...


def skill_directory(agent: Adapter, skill: Skill) -> str:
    """Where `agent` has the SKILL.md of `skill`, and the files that go with it."""
    return f"{agent.skills_root}/{skill.name}"


def skill_files(agent: Adapter, stage: VoidBoxSpec) -> dict[str, bytes]:
    """The SKILL.md files of a stage where `agent` finds them: of its procedures; and of its programs and images,
    which an agent must be told of to use them."""
    told = (*stage.procedures, *map(_of_programs, stage.tools), *map(_of_image, stage.images))
    return {f"{skill_directory(agent, skill)}/{SKILL_FILE}": skill.to_markdown().encode() for skill in told}


def _of_programs(skill: CliSkill) -> Skill:
    programs = ", ".join(f"`{name}`" for name in skill.programs)
    here = f"On the PATH of this machine: {programs}."
    return Skill(name=skill.name, description=skill.description or _short(here), body=f"{here}\n\n{skill.body}")


def _of_image(skill: OciSkill) -> Skill:
    here = f"Read-only in {skill.place}: the files of the image {skill.image}."
    return Skill(name=skill.name, description=skill.description or _short(here), body=f"{here}\n")


def _short(text: str) -> str:
    """As much of `text` as a description holds."""
    return text if len(text) <= _MAX_DESCRIPTION else f"{text[: _MAX_DESCRIPTION - 1]}…"


def mcp_config(servers: Sequence[McpSkill], *, filtered: bool = False) -> bytes:
    """The servers in the form of claude-code's ``--mcp-config``; `filtered`: with the tools that are offered, as
    lab-agent reads them there."""
    config: dict[str, dict[str, object]] = {}
    for skill in servers:
        program, *arguments = skill.command
        config[skill.name] = {"command": program, "args": arguments, "env": skill.env}
        if filtered and skill.tools is not None:
            config[skill.name]["tools"] = list(skill.tools)
    return json.dumps({"mcpServers": config}, indent=1).encode()
