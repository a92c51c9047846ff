"""lab-agent, the small agent in every image (``guest/lab_agent``)."""

from __future__ import annotations

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


class LabAgent:
    """See `contract.Adapter`."""

    name = "lab-agent"
    layer = None
    api: ModelApi = "messages"
    skills_root = CLAUDE_SKILLS

    def prepare(self, stage: VoidBoxSpec, base_url: str, token: str) -> Launch:
        """The prompt goes through standard input: an argument holds 128 KiB at most (execve(2))."""
        assert stage.model is not None, "an agent has a model"
        argv = ["lab-agent", "-p", "-", "--output-format", "stream-json", "--model", stage.model.name]
        env = {"HOME": HOME, "ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_API_KEY": token}
        files = skill_files(self, stage)
        if stage.servers:
            argv += ["--mcp-config", MCP_FILE]
            env |= MCP_BOUNDS
            files[MCP_FILE] = mcp_config(stage.servers, filtered=True)
        return Launch(argv=tuple(argv), env=env, files=files, stdin=stage.prompt.encode())

    def parser(self) -> ClaudeStreamParser:
        """A new parser."""
        return ClaudeStreamParser()
