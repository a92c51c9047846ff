"""claude-code (npm ``@anthropic-ai/claude-code``), tried with 2.1.330.

Proprietary: its layer is built on each user's own machine and never handed on. It needs a CPU with
SSE4.2: under TCG, a CPU model of Nehalem or later.
"""

from __future__ import annotations

import re

from voidbox_lab.agents.claude_stream import ClaudeStreamParser
from voidbox_lab.agents.contract import (
    CLAUDE_SKILLS,
    HOME,
    MCP_BOUNDS,
    MCP_FILE,
    Launch,
    ModelApi,
    mcp_config,
    skill_files,
)
from voidbox_lab.spec import VoidBoxSpec

_OWN_TOOLS = (
    *("Agent", "Bash", "Edit", "Glob", "Grep", "KillShell", "LS", "MultiEdit", "NotebookEdit", "Read", "Skill"),
    *("Task", "TaskOutput", "TaskStop", "TodoWrite", "ToolSearch", "Workflow", "Write"),
)
"""Its own tools that do something in a box."""


class ClaudeCode:
    """See `contract.Adapter`."""

    name = "claude-code"
    layer = "claude-code"
    api: ModelApi = "messages"
    skills_root = CLAUDE_SKILLS

    def prepare(self, stage: VoidBoxSpec, base_url: str, token: str) -> Launch:
        """Headless, with partial messages; permissions are the box's business, so it does not ask for any."""
        argv = ["claude", "-p", "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
        argv += _permissions(stage)
        assert stage.model is not None, "an agent has a model"
        if stage.model.provider == "anthropic":
            # Another provider's names mean nothing to it; it asks for its default, and the gateway puts the
            # stage's model in its place.
            argv += ["--model", stage.model.name]
        env = {
            "HOME": HOME,
            "ANTHROPIC_BASE_URL": base_url,
            "ANTHROPIC_API_KEY": token,
            # There is no network: without these it tries to phone home first.
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        files = skill_files(self, stage)
        if stage.servers:
            argv += ["--mcp-config", MCP_FILE, "--strict-mcp-config"]
            env |= MCP_BOUNDS
            if stage.model.provider != "anthropic":
                # It would offer MCP tools by name only, to be looked up by content blocks that others do not know.
                env["ENABLE_TOOL_SEARCH"] = "false"
            files[MCP_FILE] = mcp_config(stage.servers)
        return Launch(argv=tuple(argv), env=env, files=files, stdin=stage.prompt.encode())

    def parser(self) -> ClaudeStreamParser:
        """A new parser."""
        return ClaudeStreamParser()


def _permissions(stage: VoidBoxSpec) -> list[str]:
    """It may do everything: the box is the limit. Unless a server has tools that it is not to use, which it only
    refuses in a mode where all else has to be allowed by name."""
    if all(skill.tools is None for skill in stage.servers):
        return ["--dangerously-skip-permissions"]
    allowed = list(_OWN_TOOLS)
    for skill in stage.servers:
        server = f"mcp__{skill.name}"
        allowed += [server] if skill.tools is None else [f"{server}__{_plain(tool)}" for tool in skill.tools]
    return ["--permission-mode", "dontAsk", "--allowedTools", ",".join(allowed)]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
