"""claude-code (npm ``@anthropic-ai/claude-code``), tried with 2.1.330.

Proprietary: its layer is built on each user's own machine and never handed on. It needs a CPU with
SSE4.2: under TCG, a CPU model of Nehalem or later.
"""

from __future__ import annotations

from collections.abc import Sequence

from voidbox_lab.agents.claude_stream import ClaudeStreamParser
from voidbox_lab.agents.contract import HOME, Launch, skill_files
from voidbox_lab.spec import Skill, VoidBoxSpec


class ClaudeCode:
    """See `contract.Adapter`."""

    name = "claude-code"
    layer = "claude-code"

    def prepare(self, stage: VoidBoxSpec, skills: Sequence[Skill], base_url: str, token: str) -> Launch:
        """Headless, with partial messages; permissions are the box's business, so it does not ask for any."""
        argv = ["claude", "-p", "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
        argv.append("--dangerously-skip-permissions")
        assert stage.model is not None, "an agent has a model"
        if stage.model.provider == "anthropic":
            # Another provider's names mean nothing to it; it asks for its default, and the gateway puts the
            # stage's model in its place.
            argv += ["--model", stage.model.name]
        return Launch(
            argv=tuple(argv),
            env={
                "HOME": HOME,
                "ANTHROPIC_BASE_URL": base_url,
                "ANTHROPIC_API_KEY": token,
                # There is no network: without these it tries to phone home first.
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_AUTOUPDATER": "1",
            },
            files=skill_files(skills),
            stdin=stage.prompt.encode(),
        )

    def parser(self) -> ClaudeStreamParser:
        """A new parser."""
        return ClaudeStreamParser()
