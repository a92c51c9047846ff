"""Skills that are programs: MCP servers, command-line tools, agent CLIs, images; and what each needs in a box."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

from pydantic import Field

from voidbox_lab.cards import Card, Shown
from voidbox_lab.spec.base import Name, Spec
from voidbox_lab.spec.packages import MAX_PACKAGES, Package, Reference
from voidbox_lab.spec.policy import ExecName
from voidbox_lab.spec.skill import MAX_SKILL_BYTES, Skill
from voidbox_lab.spec.volume import MountPath

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
EnvValue = Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=32768)]
Argument = Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=131071)]
"""execve(2): no NUL, at most 128 KiB each."""
Description = Annotated[str, Field(max_length=1024)]


class McpSkill(Shown, Spec):
    """A server of the Model Context Protocol (modelcontextprotocol.io), started in the box (stdio)."""

    kind: Literal["mcp"] = "mcp"
    name: Name
    description: Description = ""
    command: tuple[Argument, ...] = Field(min_length=1, max_length=256)
    """The server's program and its arguments."""
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=64)
    """Its environment. Not for secrets: it is stored with the run and seen in the box."""
    packages: tuple[Package, ...] = Field((), max_length=MAX_PACKAGES)
    """What it needs in the box."""
    tools: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] | None = Field(None, max_length=256)
    """The tools of it that the agent is offered; None: all."""

    def _card(self) -> Card:
        facts = (
            ("server", shlex.join(self.command)),
            ("packages", ", ".join(self.packages)),
            ("environment", " ".join(f"{name}={value}" for name, value in self.env.items())),
            ("tools", "all" if self.tools is None else ", ".join(self.tools)),
        )
        return _card(self, facts)


class CliSkill(Shown, Spec):
    """Command-line programs that the box's image lacks, as a layer."""

    kind: Literal["cli"] = "cli"
    name: Name
    description: Description = ""
    packages: tuple[Package, ...] = Field(min_length=1, max_length=MAX_PACKAGES)
    commands: tuple[ExecName, ...] = Field((), max_length=256)
    """Its programs; a policy that names commands allows these as well. Nothing: the skill's own name."""
    body: str = Field("", max_length=MAX_SKILL_BYTES)
    """How to use them, in Markdown, for the agent."""

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs it is for."""
        return self.commands or (self.name,)

    def _card(self) -> Card:
        facts = (("packages", ", ".join(self.packages)), ("programs", ", ".join(self.programs)))
        return _card(self, facts, (("how to use it", self.body),))


class AgentSkill(Shown, Spec):
    """Which agent CLI drives the stage."""

    kind: Literal["agent"] = "agent"
    name: Name
    """See `voidbox_lab.agents`."""
    description: Description = ""

    def _card(self) -> Card:
        return _card(self, (("drives", "the stage that has it"),))


class OciSkill(Shown, Spec):
    """The files of an OCI image, read-only at a place in the box."""

    kind: Literal["oci"] = "oci"
    name: Name
    description: Description = ""
    image: Reference
    path: MountPath | None = None
    """None: ``/skills/NAME``."""

    @property
    def place(self) -> str:
        """Where the box has it."""
        return self.path or f"/skills/{self.name}"

    def _card(self) -> Card:
        return _card(self, (("image", self.image), ("at", f"{self.place}, read-only")))


AnySkill = Annotated[Skill | McpSkill | CliSkill | AgentSkill | OciSkill, Field(discriminator="kind")]
Capability = Skill | McpSkill | CliSkill | AgentSkill | OciSkill


def _card(
    skill: McpSkill | CliSkill | AgentSkill | OciSkill,
    facts: tuple[tuple[str, str], ...],
    texts: tuple[tuple[str, str], ...] = (),
) -> Card:
    described = (("description", skill.description), *facts)
    return Card("skill", skill.name, ((skill.kind, skill.kind),), described, texts=texts)


def in_words(skill: Capability) -> str:
    """A skill in few words: its name, and where its kind says so, what it is and what it is made of."""
    match skill:
        case McpSkill():
            return f"{skill.name} (MCP server {skill.command[0]})"
        case CliSkill():
            return f"{skill.name} ({', '.join(skill.packages)})"
        case AgentSkill():
            return f"{skill.name} (agent)"
        case OciSkill():
            return f"{skill.name} ({skill.image} at {skill.place})"
    if skill.origin is not None:
        return f"{skill.name} ({skill.origin.source} at {skill.origin.revision.removeprefix('sha256:')[:12]})"
    return skill.name
