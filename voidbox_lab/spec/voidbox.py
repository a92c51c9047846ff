"""A VoidBox as data: one agent, its skills, its model, its box. Or a plain command in a box."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from voidbox_lab.spec.base import Name, Spec
from voidbox_lab.spec.budget import Budget
from voidbox_lab.spec.failure import OnFailure, Retry
from voidbox_lab.spec.model import Model
from voidbox_lab.spec.policy import Policy
from voidbox_lab.spec.skill import Skill
from voidbox_lab.spec.volume import Mounts

MIN_MEMORY_MB = 192
"""Below this the guest's kernel, agent and one Python process do not fit (measured; see docs/performance.md)."""
COMMAND = "command"
"""The name of the adapter that runs a plain command."""

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
EnvValue = Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=32768)]
Argument = Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=131071)]
"""execve(2): no NUL, at most 128 KiB each."""


class VoidBoxSpec(Spec):
    """One stage: what runs, with which skills, against which model, in how large a box.

    Either an agent with a `prompt` and a `model`, or a `command`, whose standard output is the answer.
    """

    name: Name
    prompt: str = Field("", max_length=1 << 20)
    skills: tuple[Skill, ...] = Field((), max_length=64)
    model: Model | None = None
    agent: Name = "lab-agent"
    """Which agent CLI drives the stage; see `voidbox_lab.agents`."""
    command: tuple[Argument, ...] | None = Field(None, min_length=1, max_length=4096)
    """A command instead of an agent. With a `model` it finds the gateway in its environment."""
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=256)
    """Environment of the `command`. Not for secrets: it is stored with the run and seen in the box."""
    image: Name = "default"
    memory_mb: int = Field(512, ge=MIN_MEMORY_MB, le=1 << 20)
    volumes: Mounts = ()
    """Named volumes and where the box has them, e.g. ``("cache:/data", "models:/models:ro")``."""
    vcpus: int = Field(1, ge=1, le=64)
    timeout_s: float = Field(300, gt=0, le=86400)
    """Wall-clock bound on one attempt of the agent, in seconds; boot is bounded apart."""
    policy: Policy = Policy()
    budget: Budget = Budget()
    on_failure: OnFailure = "fail"
    retry: Retry | None = None

    @property
    def adapter(self) -> str:
        """The adapter that drives it."""
        return self.agent if self.command is None else COMMAND

    @field_validator("skills")
    @classmethod
    def _unique(cls, skills: tuple[Skill, ...]) -> tuple[Skill, ...]:
        names = [s.name for s in skills]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"skill {twice[0]!r} is named twice")
        return skills

    @model_validator(mode="after")
    def _agent_or_command(self) -> VoidBoxSpec:
        if self.command is None:
            if not self.prompt:
                raise ValueError("an agent needs a prompt; give one, or a command instead")
            if self.model is None:
                raise ValueError("an agent needs a model, PROVIDER:NAME; scripted:quickstart works without a key")
            if self.env:
                raise ValueError("env is for a command; an agent's environment is its adapter's")
        elif self.prompt or self.skills:
            raise ValueError("a command has neither a prompt nor skills; give them to an agent instead")
        return self
