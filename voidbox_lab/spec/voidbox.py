"""A VoidBox as data: one agent, its skills, its model, its box. Or a plain command in a box."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from voidbox_lab.spec.base import Name, Spec
from voidbox_lab.spec.budget import Budget
from voidbox_lab.spec.capability import (
    AgentSkill,
    AnySkill,
    Argument,
    Capability,
    CliSkill,
    EnvName,
    EnvValue,
    McpSkill,
    OciSkill,
)
from voidbox_lab.spec.failure import OnFailure, Retry
from voidbox_lab.spec.hostmount import HostMounts
from voidbox_lab.spec.model import Model
from voidbox_lab.spec.packages import ImageName, OciMount, Rootfs
from voidbox_lab.spec.policy import Policy
from voidbox_lab.spec.skill import Skill
from voidbox_lab.spec.volume import Mounts, check_places

MIN_MEMORY_MB = 192
"""Below this the guest's kernel, agent and one Python process do not fit (measured; see docs/performance.md)."""
COMMAND = "command"
"""The name of the adapter that runs a plain command."""


class VoidBoxSpec(Spec):
    """One stage: what runs, with which skills, against which model, in how large a box.

    Either an agent with a `prompt` and a `model`, or a `command`, whose standard output is the answer.
    """

    name: Name
    prompt: str = Field("", max_length=1 << 20)
    skills: tuple[AnySkill, ...] = Field((), max_length=64)
    model: Model | None = None
    agent: Name = "lab-agent"
    """Which agent CLI drives the stage; see `voidbox_lab.agents`. An `AgentSkill` says the same."""
    command: tuple[Argument, ...] | None = Field(None, min_length=1, max_length=4096)
    """A command instead of an agent. With a `model` it finds the gateway in its environment."""
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=256)
    """Environment of the `command`. Not for secrets: it is stored with the run and seen in the box."""
    image: ImageName = "default"
    """The box's root: an image of our own, or an OCI image such as ``python:3.12-slim``."""
    memory_mb: int = Field(512, ge=MIN_MEMORY_MB, le=1 << 20)
    volumes: Mounts = ()
    """Named volumes and where the box has them, e.g. ``("cache:/data", "models:/models:ro")``."""
    mounts: HostMounts = ()
    """Folders of the host and where the box has them, e.g. ``("/srv/data:/data", "/srv/out:/out:rw")``."""
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
        if self.command is not None:
            return COMMAND
        return next((s.name for s in self.skills if isinstance(s, AgentSkill)), self.agent)

    @property
    def procedures(self) -> tuple[Skill, ...]:
        """The skills that are knowledge."""
        return tuple(s for s in self.skills if isinstance(s, Skill))

    @property
    def servers(self) -> tuple[McpSkill, ...]:
        """The skills that are MCP servers."""
        return tuple(s for s in self.skills if isinstance(s, McpSkill))

    @property
    def tools(self) -> tuple[CliSkill, ...]:
        """The skills that are command-line programs."""
        return tuple(s for s in self.skills if isinstance(s, CliSkill))

    @property
    def images(self) -> tuple[OciSkill, ...]:
        """The skills that are images."""
        return tuple(s for s in self.skills if isinstance(s, OciSkill))

    def rootfs(self, agent: str | None) -> Rootfs:
        """What its box's root is made of; `agent` is the layer of its agent CLI, if that is one."""
        packages = {p for server in self.servers for p in server.packages}
        packages |= {p for tool in self.tools for p in tool.packages}
        oci = tuple(OciMount(image=skill.image, path=skill.place) for skill in self.images)
        return Rootfs(image=self.image, agent=agent, packages=tuple(sorted(packages)), oci=oci)

    @property
    def effective_policy(self) -> Policy:
        """Its policy; with the programs of its skills among the commands, if it names commands."""
        if self.policy.commands is None:
            return self.policy
        servers = tuple(skill.command[0] for skill in self.servers)
        programs = (*(name for skill in self.tools for name in skill.programs), *servers)
        commands = tuple(dict.fromkeys((*self.policy.commands, *programs)))
        return self.policy.model_copy(update={"commands": commands})

    @property
    def loosened(self) -> tuple[str, ...]:
        """In what its policy is looser than the default, in words; see `Policy.loosened`."""
        places = {m.path: m.read_only for m in self.volumes} | {m.path: m.read_only for m in self.mounts}
        writable = [path for path, read_only in places.items() if not read_only]
        return self.effective_policy.loosened_beside(writable, [path for path in places if path not in writable])

    @field_validator("skills")
    @classmethod
    def _unique(cls, skills: tuple[Capability, ...]) -> tuple[Capability, ...]:
        names = [s.name for s in skills]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"skill {twice[0]!r} is named twice")
        if sum(isinstance(s, AgentSkill) for s in skills) > 1:
            raise ValueError("a stage has one agent; name one skill of kind 'agent'")
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
        elif self.prompt or any(isinstance(s, Skill | McpSkill | AgentSkill) for s in self.skills):
            raise ValueError(
                "a command has neither a prompt nor skills for an agent; give them to an agent instead "
                "(skills of kind 'cli' and 'oci' are for both)"
            )
        return self

    @model_validator(mode="after")
    def _places(self) -> VoidBoxSpec:
        images = [(f"skill {skill.name!r}", skill.place) for skill in self.images]
        check_places([m.place for m in self.volumes] + [m.place for m in self.mounts] + images)
        if any(isinstance(s, AgentSkill) for s in self.skills) and self.agent not in {"lab-agent", self.adapter}:
            raise ValueError(f"the agent is {self.agent!r}, but a skill says {self.adapter!r}; keep one of them")
        return self
