"""lab-agent, the small agent in every image (``guest/lab_agent``)."""

from __future__ import annotations

from collections.abc import Sequence

from voidbox_lab.agents.claude_stream import ClaudeStreamParser
from voidbox_lab.agents.contract import HOME, Launch, skill_files
from voidbox_lab.spec import Skill, VoidBoxSpec


class LabAgent:
    """See `contract.Adapter`."""

    name = "lab-agent"
    layer = None

    def prepare(self, stage: VoidBoxSpec, skills: Sequence[Skill], base_url: str, token: str) -> Launch:
        """The prompt goes through standard input: an argument holds 128 KiB at most (execve(2))."""
        assert stage.model is not None, "an agent has a model"
        return Launch(
            argv=("lab-agent", "-p", "-", "--output-format", "stream-json", "--model", stage.model.name),
            env={"HOME": HOME, "ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_API_KEY": token},
            files=skill_files(skills),
            stdin=stage.prompt.encode(),
        )

    def parser(self) -> ClaudeStreamParser:
        """A new parser."""
        return ClaudeStreamParser()
