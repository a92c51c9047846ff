"""What an agent adapter is. An adapter knows one CLI; it starts nothing and reads no clock.

Its input from a box is hostile: a parser is fed lines that anybody in the box may have written, so it
bounds them, never raises on them, and believes an agent's success only if the exit code agrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from voidbox_lab.spec import Skill, VoidBoxSpec
from voidbox_lab.spec.events import Body

HOME = "/home/agent"
"""Home of the guest's user `agent`, who runs every agent."""


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

    def prepare(self, stage: VoidBoxSpec, skills: Sequence[Skill], base_url: str, token: str) -> Launch:
        """How to start it for `stage`.

        `base_url` is the gateway's address inside the box (no ``/v1``), `token` the stage's.
        """
        ...

    def parser(self) -> Parser:
        """A new parser."""
        ...


def skill_files(skills: Sequence[Skill]) -> dict[str, bytes]:
    """Skills as files where claude-code and lab-agent look for them."""
    return {f"{HOME}/.claude/skills/{s.name}/SKILL.md": s.to_markdown().encode() for s in skills}
