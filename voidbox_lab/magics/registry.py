"""What a shell's cells have declared: skills and stages by name. Declaring a name again redefines it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from voidbox_lab.errors import UserError
from voidbox_lab.spec import Budget, Capability, Model, OnFailure, Policy, Retry, VoidBoxSpec, validated


@dataclass(frozen=True)
class StageDeclaration:
    """A ``%%voidbox stage`` cell. Skills are names until the stage runs, so that a skill's cell may be
    executed again after the stage's."""

    name: str
    prompt: str
    skills: tuple[str, ...]
    model: Model
    agent: str
    memory_mb: int
    vcpus: int
    timeout_s: float
    policy: Policy
    image: str = "default"
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    on_failure: OnFailure = "fail"
    retry: Retry | None = None
    inputs: tuple[str, ...] = ()
    """Paths of files of its own; read when it runs."""
    volumes: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    """As `HostMount` is written."""


@dataclass
class Registry:
    """The declarations of one shell."""

    skills: dict[str, Capability] = field(default_factory=dict)
    stages: dict[str, StageDeclaration] = field(default_factory=dict)

    def declare_skill(self, skill: Capability) -> None:
        """Add or replace."""
        self.skills[skill.name] = skill

    def declare_stage(self, stage: StageDeclaration) -> VoidBoxSpec:
        """Add or replace, if it is valid as a whole; returns what it is now.

        Raises:
            UserError: an unknown skill, or a value out of range.
        """
        spec = self._spec(stage)
        self.stages[stage.name] = stage
        return spec

    def stage(self, name: str, *, timeout_s: float | None = None) -> VoidBoxSpec:
        """The stage `name` with the skills as they are now, and another time limit if one is given.

        Raises:
            UserError: no such stage, or one of its skills is not declared.
        """
        if name not in self.stages:
            raise UserError(unknown("stage", name, self.stages, "Declare it in a cell with '%%voidbox stage'"))
        return self._spec(self.stages[name], timeout_s)

    def _spec(self, stage: StageDeclaration, timeout_s: float | None = None) -> VoidBoxSpec:
        for name in stage.skills:
            if name not in self.skills:
                advice = "Declare it in a cell with '%%voidbox skill'"
                raise UserError(unknown("skill", name, self.skills, advice, f" in stage {stage.name!r}"))
        return validated(
            VoidBoxSpec,
            name=stage.name,
            prompt=stage.prompt,
            skills=tuple(self.skills[name] for name in stage.skills),
            model=stage.model,
            agent=stage.agent,
            memory_mb=stage.memory_mb,
            vcpus=stage.vcpus,
            timeout_s=timeout_s if timeout_s is not None else stage.timeout_s,
            policy=stage.policy,
            image=stage.image,
            budget=stage.budget,
            on_failure=stage.on_failure,
            retry=stage.retry,
            volumes=stage.volumes,
            mounts=stage.mounts,
        )


def unknown(kind: str, name: str, known: Iterable[str], advice: str, where: str = "") -> str:
    """One sentence about an unknown name, with the nearest known one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"The {kind} {name!r}{where} is not known; did you mean {near[0]!r}?"
    listed = f" (known: {', '.join(known[:8])}{', …' if len(known) > 8 else ''})" if known else ""
    return f"The {kind} {name!r}{where} is not known{listed}. {advice}."
