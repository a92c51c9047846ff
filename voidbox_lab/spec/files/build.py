"""A checked spec file as the run that it declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from voidbox_lab.spec.base import Name
from voidbox_lab.spec.capability import Capability
from voidbox_lab.spec.failure import Retry
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.files.graph import order
from voidbox_lab.spec.files.reading import Reading
from voidbox_lab.spec.files.shape import (
    AgentFile,
    AgentSpec,
    BoxSpec,
    File,
    PipelineFile,
    SandboxFile,
    StageSpec,
    StepSpec,
    WorkSpec,
)
from voidbox_lab.spec.files.skills import SkillSpec
from voidbox_lab.spec.flow import assemble
from voidbox_lab.spec.mapping import expand
from voidbox_lab.spec.merge import Merge, Reducer
from voidbox_lab.spec.model import Model
from voidbox_lab.spec.pipeline import Pipeline
from voidbox_lab.spec.run import RunSpec, Stage
from voidbox_lab.spec.skill import Skill
from voidbox_lab.spec.validate import validated
from voidbox_lab.spec.voidbox import VoidBoxSpec

ALL = ""
"""In a mapping of models: every stage that has one."""


@dataclass(frozen=True)
class _Builder:
    reading: Reading
    models: Mapping[str, Model]

    def skill(self, written: SkillSpec) -> Capability:
        name, described = written.name, written.description or ""
        if written.file is not None:
            return self.reading.skill(written.file).renamed(name, written.description)
        if written.mcp is not None:
            more: dict[str, Any] = {"packages": written.packages, "env": written.env, "tools": written.tools}
            return Skill.mcp(name or "", written.mcp, description=described, **more)
        if written.cli is not None:
            body = written.body or ""
            return Skill.cli(written.cli, *written.packages, commands=written.commands, description=described,
                             body=body)  # fmt: skip
        if written.agent is not None:
            return Skill.agent(written.agent)
        if written.oci is not None:
            return Skill.oci(written.oci, path=written.path, name=name, description=described)
        if written.remote is not None:
            found = self.reading.remote(written.reference)
            assert found is not None, "a run is built when all are here"
            return found.renamed(name, written.description)
        return Skill.inline(name or "", written.body or "", description=described)

    def skills(self, written: tuple[SkillSpec, ...]) -> tuple[Capability, ...]:
        return tuple(map(self.skill, written))

    def inputs(self, box: BoxSpec) -> dict[str, InputFile]:
        return {name: self.reading.input(path) for name, path in box.inputs.items()}

    def agent(self, spec: AgentSpec) -> dict[str, Any]:
        text = self.reading.prompt(spec.prompt_file) if spec.prompt_file is not None else spec.prompt
        return {"prompt": text, "skills": self.skills(spec.skills), "agent": spec.agent}

    def command(self, spec: WorkSpec | SandboxFile) -> dict[str, Any]:
        return {"command": spec.argv, "env": spec.env, "skills": self.skills(spec.skills)}

    def box(self, name: Name, spec: BoxSpec, work: dict[str, Any], model: Model | None) -> VoidBoxSpec:
        tried = spec.tried
        return validated(
            VoidBoxSpec,
            name=name,
            image=spec.image,
            memory_mb=spec.memory,
            volumes=spec.volumes,
            mounts=spec.mounts,
            vcpus=spec.vcpus,
            timeout_s=spec.timeout,
            policy=spec.policy,
            budget=spec.budget,
            on_failure=spec.on_failure.then,
            retry=Retry(n=tried.n, backoff_s=tried.backoff) if tried else None,
            model=self.models.get(name) or (model and self.models.get(ALL, model)),
            **work,
        )

    def stage(self, name: Name, spec: WorkSpec) -> Pipeline:
        """One stage, or as many as it is mapped over; what comes before it is for others to say."""
        work = self.command(spec) if spec.argv is not None else self.agent(spec)
        box, inputs = self.box(name, spec, work, spec.model), self.inputs(spec)
        if not isinstance(spec, StageSpec) or spec.map is None:
            return Pipeline.of(box, inputs=inputs)
        over = spec.map
        items = self.reading.values(over.items) if over.items is not None else self.reading.items(over.file or "")
        mapped = expand(box, items, over.concurrency)
        stages = (s.model_copy(update={"inputs": {**inputs, **s.inputs}}) for s in mapped.stages)
        return replace(mapped, stages=tuple(stages))


def built(file: File, reading: Reading, models: Mapping[str, Model]) -> RunSpec | None:
    """The run of `file`; None for a sandbox without a command.

    Args:
        models: instead of what the file says, by stage; under `ALL`, of every other stage that has a model.

    Raises:
        UserError: what the run's own models refuse.
    """
    builder = _Builder(reading, models)
    match file:
        case AgentFile():
            box = builder.box(file.name, file, builder.agent(file), file.model)
            return Pipeline.of(box).run_spec(inputs=builder.inputs(file), name=file.name)
        case SandboxFile():
            if file.argv is None:
                return None
            box = builder.box(file.name, file, builder.command(file), None)
            return Pipeline.of(box).run_spec(inputs=builder.inputs(file), name=file.name)
    stages: Mapping[str, WorkSpec] = file.stages if isinstance(file, PipelineFile) else file.steps
    parts = {name: builder.stage(name, spec) for name, spec in stages.items()}
    if isinstance(file, PipelineFile) and file.flow is not None:
        whole = assemble(file.flow, parts.__getitem__, file.reduce)
    else:
        whole = _graph(stages, parts, file.reduce)
    if file.result is not None:
        whole = replace(whole, tails=parts[file.result].tails)
    inputs = {name: reading.input(path) for name, path in file.inputs.items()}
    return whole.run_spec(inputs=inputs, budget=file.budget, name=file.name)


def stage_names(file: File) -> list[str]:
    """The stages that stand in a file, before any is mapped."""
    if isinstance(file, AgentFile | SandboxFile):
        return [file.name]
    return list(file.stages if isinstance(file, PipelineFile) else file.steps)


def before(spec: WorkSpec) -> list[str]:
    """The stages that come before one, by their names in the file."""
    named = spec.needs if isinstance(spec, StageSpec) else spec.depends_on if isinstance(spec, StepSpec) else ()
    return list(dict.fromkeys([*named, *([spec.stdin_from] if spec.stdin_from else [])]))


def _graph(stages: Mapping[str, WorkSpec], parts: Mapping[str, Pipeline], default: Reducer) -> Pipeline:
    """The pipeline in which each stage comes after those it names; what none needs is its result."""
    placed: list[Stage] = []
    needs = {name: before(spec) for name, spec in stages.items()}
    for name in order(needs):
        spec = stages[name]
        tails = _merged([parts[need].tails for need in needs[name]], getattr(spec, "reduce", None), default)
        update: dict[str, Any] = {"stdin_from": spec.stdin_from}
        if isinstance(tails, Merge):
            update |= {"needs": tails.leaves, "merge": tails}
        elif tails is not None:
            update |= {"needs": (tails,)}
        placed += [validated(Stage, **{**dict(stage), **update}) for stage in parts[name].stages]
    needed = {need for found in needs.values() for need in found}
    last = _merged([parts[name].tails for name in stages if name not in needed], None, default)
    pools = {pool: slots for part in parts.values() for pool, slots in part.pools.items()}
    assert last is not None, "a graph without a circle has an end"
    return Pipeline(tuple(placed), last, pools)


def _merged(tails: list[str | Merge], by: Reducer | None, default: Reducer) -> str | Merge | None:
    """Several outputs as one: merged if there are more, or if it was asked for."""
    if not tails:
        return None
    if len(tails) == 1 and by is None:
        return tails[0]
    return Merge(of=tuple(tails), by=by or default)
