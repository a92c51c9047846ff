"""A VoidBox as data: one agent, its skills, its model, its box."""

from __future__ import annotations

from pydantic import Field, field_validator

from voidbox_lab.spec.base import Name, Spec
from voidbox_lab.spec.model import Model
from voidbox_lab.spec.policy import Policy
from voidbox_lab.spec.skill import Skill
from voidbox_lab.spec.volume import Mounts

MIN_MEMORY_MB = 192
"""Below this the guest's kernel, agent and one Python process do not fit (measured; see docs/performance.md)."""


class VoidBoxSpec(Spec):
    """One stage: what runs, with which skills, against which model, in how large a box."""

    name: Name
    prompt: str = Field(min_length=1, max_length=1 << 20)
    skills: tuple[Skill, ...] = Field((), max_length=64)
    model: Model
    agent: Name = "lab-agent"
    """Which agent CLI drives the stage; see `voidbox_lab.agents`."""
    image: Name = "default"
    memory_mb: int = Field(512, ge=MIN_MEMORY_MB, le=1 << 20)
    volumes: Mounts = ()
    """Named volumes and where the box has them, e.g. ``("cache:/data", "models:/models:ro")``."""
    vcpus: int = Field(1, ge=1, le=64)
    timeout_s: float = Field(300, gt=0, le=86400)
    """Wall-clock bound on the agent, in seconds; boot is bounded apart."""
    policy: Policy = Policy()

    @field_validator("skills")
    @classmethod
    def _unique(cls, skills: tuple[Skill, ...]) -> tuple[Skill, ...]:
        names = [s.name for s in skills]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"skill {twice[0]!r} is named twice")
        return skills
