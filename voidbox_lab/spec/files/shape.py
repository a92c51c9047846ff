"""What may stand in a spec file, by its kind. The JSON Schema is made of these models and their docstrings.

They say what is well formed by itself; what names must exist, `voidbox_lab.spec.files.graph` checks.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from voidbox_lab.spec.budget import Budget
from voidbox_lab.spec.capability import Argument, EnvName, EnvValue
from voidbox_lab.spec.failure import OnFailure, parse_failure
from voidbox_lab.spec.files.fields import (
    Backoff,
    Duration,
    FileModel,
    FileName,
    FlowField,
    HostMountField,
    ImageText,
    InputPath,
    ItemsPath,
    Memory,
    ModelText,
    OrShort,
    PromptPath,
    StageName,
    Version,
    told,
)
from voidbox_lab.spec.files.skills import SkillField, check_tools
from voidbox_lab.spec.mapping import ITEM
from voidbox_lab.spec.merge import Reducer
from voidbox_lab.spec.policy import Policy
from voidbox_lab.spec.run import MAX_STAGES
from voidbox_lab.spec.volume import MAX_MOUNTS, Mounts

Inputs = Annotated[dict[FileName, InputPath], Field(max_length=64)]
RunInputs = Annotated[dict[FileName, InputPath], Field(max_length=1024)]
Command = Annotated[tuple[Argument, ...], Field(min_length=1, max_length=4096)]
Env = Annotated[dict[EnvName, EnvValue], Field(max_length=256)]
Names = Annotated[tuple[StageName, ...], Field(max_length=MAX_STAGES)]


class RetrySpec(FileModel):
    """How often a stage that failed is tried again, in a fresh box each time."""

    n: int = Field(ge=1, le=20)
    """Attempts after the first one."""
    backoff: Backoff = 1.0
    """Wait before the second attempt, in seconds or as in 5s; doubled before each further one."""


RetryField = Annotated[
    RetrySpec,
    BeforeValidator(lambda value: {"n": value} if isinstance(value, int) else value),
    OrShort({"type": "integer", "minimum": 1, "maximum": 20}),
]


FAILURE_PATTERN = r"^\s*(retry\(.*\)([ ,;]*(fail|skip|continue))?|fail|skip|continue)\s*$"


def _failure(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    then, retry = parse_failure(value)
    return {"then": then} | ({"retry": {"n": retry.n, "backoff": retry.backoff_s}} if retry else {})


class FailureSpec(FileModel):
    """What a stage's failure means for the rest of the run."""

    then: OnFailure = "fail"
    """fail: the run fails. skip: stages that need this one are skipped, and the run may still succeed.
    continue: they run without its output."""
    retry: RetryField | None = None


FailureField = Annotated[
    FailureSpec,
    BeforeValidator(told(_failure)),
    OrShort({"type": "string", "pattern": FAILURE_PATTERN}),
]


def _over(value: Any) -> Any:
    if isinstance(value, str):
        return {"file": value}
    return {"items": value} if isinstance(value, list) else value


class MapSpec(FileModel):
    """One stage over many items: it becomes NAME-1, NAME-2, …, each with its item as item.json."""

    items: list[Any] | None = Field(None, min_length=1, max_length=MAX_STAGES)
    """The items themselves."""
    file: ItemsPath | None = None
    """A .json file with an array, or a .csv file, whose rows become objects of text."""
    concurrency: int = Field(4, ge=1, le=1024)
    """Most that are at work at once, room permitting."""

    @model_validator(mode="after")
    def _one_source(self) -> MapSpec:
        if (self.items is None) == (self.file is None):
            raise ValueError("map goes over either items or a file")
        return self


MapField = Annotated[
    MapSpec,
    BeforeValidator(_over),
    OrShort({"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1}]}),
]


class BoxSpec(FileModel):
    """The box of a stage, and the bounds on what happens in it."""

    image: ImageText = "default"
    """The image it boots: one of your own, or an OCI image such as python:3.12-slim."""
    memory: Memory = 512
    """Memory: megabytes (MiB), or as in 512MB, 1GB."""
    volumes: Mounts = ()
    """Named volumes and where the box has them, as in cache:/data, models:/models:ro."""
    mounts: tuple[HostMountField, ...] = Field((), max_length=MAX_MOUNTS)
    """Folders of the host and where the box has them, as in data:/data, out:/out:rw; relative to this file."""
    vcpus: int = Field(1, ge=1, le=64)
    """Virtual CPUs."""
    timeout: Duration = 300
    """Bound on one attempt: seconds, or as in 90s, 5m, 1h. Boot is bounded apart."""
    policy: Policy = Policy()
    budget: Budget = Budget()
    on_failure: FailureField = FailureSpec()
    """fail, skip, continue, retry(N, SECONDS), or a retry and what then, as in 'retry(2, 5) continue'."""
    retry: RetryField | None = None
    """Attempts after the first one, or {n, backoff}; instead of the retry in on_failure."""
    inputs: Inputs = Field(default_factory=dict)
    """Files for /workspace/input: name in the box to path, relative to this file."""

    @model_validator(mode="after")
    def _one_retry(self) -> BoxSpec:
        if self.retry is not None and self.on_failure.retry is not None:
            raise ValueError("retry stands here and in on_failure; keep one of them")
        return self

    @property
    def tried(self) -> RetrySpec | None:
        """How often it is tried again."""
        return self.retry or self.on_failure.retry


class AgentSpec(BoxSpec):
    """An agent and its box."""

    prompt: str | None = Field(None, min_length=1, max_length=1 << 20)
    """What the agent is to do."""
    prompt_file: PromptPath | None = None
    """A file with the prompt, relative to this file, instead of prompt."""
    skills: tuple[SkillField, ...] = Field((), max_length=64)
    """Paths of SKILL.md files or their directories, or skills written here."""
    model: ModelText | None = None
    """PROVIDER:NAME, as in anthropic:claude-sonnet-4-5, ollama:qwen3, scripted:echo."""
    agent: StageName = "lab-agent"
    """The agent program."""


class WorkSpec(AgentSpec):
    """A stage: an agent with a prompt and a model, or a plain command, whose standard output is its answer."""

    AGENT_ONLY: ClassVar[tuple[str, ...]] = ("agent",)
    COMMAND_ONLY: ClassVar[tuple[str, ...]] = ("env", "stdin_from")

    run: str | None = Field(None, min_length=1, max_length=131071)
    """A line for /bin/sh instead of an agent."""
    command: Command | None = None
    """A program and its arguments instead of an agent, without a shell."""
    env: Env = Field(default_factory=dict)
    """Environment of the command. Not for secrets: it is stored with the run and seen in the box."""
    stdin_from: StageName | None = None
    """The stage whose output is the command's standard input."""

    @property
    def argv(self) -> tuple[str, ...] | None:
        """The command, if it is one."""
        return ("/bin/sh", "-c", self.run) if self.run is not None else self.command

    @model_validator(mode="after")
    def _agent_or_command(self) -> WorkSpec:
        _one_work(self, ("prompt", "prompt_file", "run", "command"))
        given = self.model_fields_set
        if self.argv is not None:
            for name in self.AGENT_ONLY:
                if name in given:
                    raise ValueError(f"{name} is for agents, and this is a command")
            check_tools(self.skills)
        else:
            for name in self.COMMAND_ONLY:
                if name in given:
                    raise ValueError(f"{name} is for commands, and this is an agent")
            _need_model(self)
        return self


def _one_work(spec: FileModel, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(spec, name) is not None]
    if len(given) != 1:
        what = f"has {' and '.join(given)}" if given else "does nothing"
        raise ValueError(f"this {what}; give exactly one of {', '.join(names)}")


def _need_model(spec: AgentSpec) -> None:
    if spec.model is None:
        raise ValueError("an agent needs a model, as in 'model: anthropic:claude-sonnet-4-5'")


class StageSpec(WorkSpec):
    """A stage of a pipeline."""

    needs: Names = ()
    """Stages whose outputs it gets; for pipelines without a flow."""
    reduce: Reducer | None = None
    """How the outputs of its needs become one; default: as the pipeline's reduce says."""
    map: MapField | None = None

    @model_validator(mode="after")
    def _one_item(self) -> StageSpec:
        if self.map is not None and ITEM in self.inputs:
            raise ValueError(f"map puts {ITEM} into its inputs; name that file differently")
        return self


class StepSpec(WorkSpec):
    """A step of a workflow."""

    depends_on: Names = ()
    """Steps that come before it, and whose outputs it finds in /workspace/input."""
    reduce: Reducer | None = None
    """How the outputs of those become one."""


class AgentFile(AgentSpec):
    """One agent in one box."""

    kind: Literal["agent"]
    version: Version
    name: StageName
    """The agent's name, and the run's."""

    @model_validator(mode="after")
    def _whole(self) -> AgentFile:
        _one_work(self, ("prompt", "prompt_file"))
        _need_model(self)
        return self


class RunFields(FileModel):
    """What all stages of a run share."""

    version: Version
    name: StageName | None = None
    """What people call the run."""
    budget: Budget = Budget()
    inputs: RunInputs = Field(default_factory=dict)
    """Files for /workspace/input of each stage that needs no other: name in the box to path, relative to this
    file."""
    reduce: Reducer = "json"
    """How outputs become one where nothing else is said."""
    result: StageName | None = None
    """The stage whose output is the run's; default: that of the last ones."""


class PipelineFile(RunFields):
    """Stages that hand their outputs on, as a flow says or as each says by its needs."""

    kind: Literal["pipeline"]
    stages: dict[StageName, StageSpec] = Field(min_length=1, max_length=MAX_STAGES)
    """Name to stage."""
    flow: FlowField | None = None
    """How the stages hang together, as in 'a | [b, c]:text | d', or the same as a list. Without it, needs say."""


class WorkflowFile(RunFields):
    """Steps, plain commands or agents, each after those that it depends on."""

    kind: Literal["workflow"]
    steps: dict[StageName, StepSpec] = Field(min_length=1, max_length=MAX_STAGES)
    """Name to step."""


class SandboxFile(BoxSpec):
    """A box without an agent."""

    kind: Literal["sandbox"]
    version: Version
    name: StageName = "sandbox"
    run: str | None = Field(None, min_length=1, max_length=131071)
    """A line for /bin/sh, what 'voidbox run' does in it."""
    command: Command | None = None
    """The same as a program and its arguments, without a shell."""
    env: Env = Field(default_factory=dict)
    """Environment of the command. Not for secrets: it is stored with the run."""
    skills: tuple[SkillField, ...] = Field((), max_length=64)
    """Command-line programs (cli) and images (oci)."""

    @property
    def argv(self) -> tuple[str, ...] | None:
        """The command, if there is one."""
        return ("/bin/sh", "-c", self.run) if self.run is not None else self.command

    @model_validator(mode="after")
    def _one_command(self) -> SandboxFile:
        if self.run is not None and self.command is not None:
            raise ValueError("this has run and command; keep one of them")
        check_tools(self.skills)
        return self


File = AgentFile | PipelineFile | WorkflowFile | SandboxFile
KINDS: dict[str, type[File]] = {
    "agent": AgentFile,
    "pipeline": PipelineFile,
    "workflow": WorkflowFile,
    "sandbox": SandboxFile,
}
"""What ``kind:`` may say."""
