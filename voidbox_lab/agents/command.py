"""A plain command as a stage: its standard output is the answer, its exit code says whether it is one."""

from __future__ import annotations

import codecs

from voidbox_lab.agents.contract import CLAUDE_SKILLS, AgentResult, Launch
from voidbox_lab.spec import COMMAND, VoidBoxSpec
from voidbox_lab.spec.events import MAX_TEXT, AgentText, Body

MAX_ANSWER_BYTES = 16 << 20
"""Longest answer of a command; what is more is dropped, and the stage fails for it."""


class Command:
    """See `contract.Adapter`."""

    name = COMMAND
    layer = None
    api = None
    skills_root = CLAUDE_SKILLS
    """Nobody looks there: a command has no skills to read."""

    def prepare(self, stage: VoidBoxSpec, base_url: str, token: str) -> Launch:
        """With a model, the environment names the gateway the way each provider's own libraries expect it."""
        assert stage.command is not None, "the registry gives this adapter to commands only"
        env = dict(stage.env)
        if stage.model is not None:
            env |= {
                "ANTHROPIC_BASE_URL": base_url,
                "ANTHROPIC_API_KEY": token,
                "OPENAI_BASE_URL": f"{base_url}/v1",
                "OPENAI_API_KEY": token,
                "OLLAMA_HOST": base_url,
            }
        return Launch(argv=stage.command, env=env)

    def parser(self) -> CommandParser:
        """A new parser."""
        return CommandParser()


class CommandParser:
    """Keeps what a command writes, byte for byte, and shows it as it comes."""

    reads_lines = False

    def __init__(self) -> None:
        self._kept = bytearray()
        self._full = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, line: bytes) -> list[Body]:
        """See `contract.Parser`."""
        room = MAX_ANSWER_BYTES - len(self._kept)
        self._full = self._full or len(line) > room
        self._kept += line[:room]
        text = self._decoder.decode(line)
        return [AgentText(text=text[i : i + MAX_TEXT]) for i in range(0, len(text), MAX_TEXT)]

    def finish(self, exit_code: int | None) -> AgentResult:
        """See `contract.Parser`. Bytes that are no UTF-8 are replaced."""
        if self._full:
            said = f"It wrote more than {MAX_ANSWER_BYTES >> 20} MiB; have it write a file instead."
            return AgentResult(said, is_error=True)
        return AgentResult(self._kept.decode(errors="replace"), is_error=exit_code != 0)
