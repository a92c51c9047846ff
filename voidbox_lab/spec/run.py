"""A run as data, and the record of what it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import FailFast, Field, model_validator

from voidbox_lab.errors import CommandFailed, TroubleKind
from voidbox_lab.spec.base import Frozen, Name, Spec
from voidbox_lab.spec.budget import Budget
from voidbox_lab.spec.file import InputFile, check_file_name
from voidbox_lab.spec.merge import Merge, merged
from voidbox_lab.spec.model import ModelSource
from voidbox_lab.spec.skill import RelativePath
from voidbox_lab.spec.voidbox import VoidBoxSpec

StageState = Literal[
    "queued",
    "booting",
    "provisioning",
    "running",
    "collecting",
    "retrying",
    "succeeded",
    "failed",
    "cancelled",
    "skipped",
]
RunState = Literal["queued", "running", "paused", "interrupted", "succeeded", "failed", "cancelled"]
"""``paused``: nothing new starts until it is resumed. ``interrupted``: its daemon died; it can be resumed."""
Isolation = Literal["kvm", "tcg"]
VsockKind = Literal["kernel", "user"]
BoxStart = Literal["cold", "clone", "spare"]

MAX_OUTPUT = 128 * 1024
"""Longest output kept in a record, in characters; longer ones are artifacts."""
TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "skipped"})
AT_REST: frozenset[str] = TERMINAL | {"interrupted"}
"""States of a run in which nothing of it happens any more unless somebody resumes it."""
MAX_STAGES = 4096


class Stage(Spec):
    """A place in a run: a box, the stages whose output it needs, and how those become its input."""

    box: VoidBoxSpec
    needs: tuple[Name, ...] = ()
    merge: Merge | None = None
    """How the outputs of `needs` are merged; None: as a JSON array in the order of `needs`."""
    stdin_from: Name | None = None
    """The stage in `needs` whose output is the command's standard input."""
    inputs: dict[str, InputFile] = Field(default_factory=dict, max_length=64)
    """Files of this stage alone, besides the run's."""
    pool: Name | None = None
    """The pool in `RunSpec.pools` whose slots it takes one of while it is at work."""

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        name = self.box.name
        if self.merge is not None and sorted(self.merge.leaves) != sorted(self.needs):
            raise ValueError(f"stage {name!r} merges other stages than it needs; name the same ones in both")
        if self.stdin_from is not None and self.stdin_from not in self.needs:
            raise ValueError(f"stage {name!r} takes its input from {self.stdin_from!r}, which it does not need")
        if self.stdin_from is not None and self.box.command is None:
            raise ValueError(f"stage {name!r} is an agent; only a command has a standard input to be given")
        _check_files(self.inputs)
        # A needed stage's own name is the directory of the files that it left.
        ours = {f"{need}{end}" for need in self.needs for end in ("", ".md")}
        ours |= {"merged.json", "merged.md"} if self.needs else set()
        if taken := sorted(ours & self.inputs.keys()):
            raise ValueError(f"stage {name!r} has an input {taken[0]!r}, which is the name of an earlier answer")
        return self

    @property
    def merging(self) -> Merge | None:
        """How its inputs are merged; None where it needs fewer than two stages and nothing was said."""
        return self.merge or (Merge(of=self.needs) if len(self.needs) > 1 else None)


class RunSpec(Spec):
    """Everything a run is. Hashed, stored and replayed as it stands."""

    version: Literal[1] = 1
    name: Name | None = None
    """What people call it."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=MAX_STAGES), FailFast()]
    inputs: dict[str, InputFile] = Field(default_factory=dict, max_length=1024)
    """File name (no directory) to file; every stage without needs sees all of them."""
    budget: Budget = Budget()
    """Of all stages together."""
    fresh: bool = False
    """Run every stage, although an earlier result of the same stage may be known."""
    pools: dict[Name, Annotated[int, Field(ge=1, le=1024)]] = Field(default_factory=dict, max_length=64)
    """Most stages of a pool that are at work at once."""
    result: Name | Merge | None = None
    """What the run answers; None: the output of the last stage, in declared order, that has one."""

    @model_validator(mode="after")
    def _closed(self) -> RunSpec:
        names = {s.box.name for s in self.stages}
        seen: set[str] = set()
        for stage in self.stages:
            if stage.box.name in seen:
                raise ValueError(f"stage {stage.box.name!r} is named twice")
            for need in stage.needs:
                # Declared order is a topological order, so a cycle cannot be written down.
                if need not in seen:
                    known = "declared later" if need in names else "not in this run"
                    raise ValueError(f"stage {stage.box.name!r} needs {need!r}, which is {known}")
            if stage.pool is not None and stage.pool not in self.pools:
                raise ValueError(f"stage {stage.box.name!r} is in pool {stage.pool!r}, which is not in this run")
            seen.add(stage.box.name)
        wanted = (self.result,) if isinstance(self.result, str) else self.result.leaves if self.result else ()
        for name in wanted:
            if name not in names:
                raise ValueError(f"the run's result names {name!r}, which is not in this run")
        _check_files(self.inputs)
        return self


def _check_files(files: Mapping[str, InputFile]) -> None:
    for name in files:
        check_file_name(name)


class Tokens(Frozen):
    """Token counts as the gateway metered them. `input` excludes cache reads and writes, as in Anthropic's API."""

    input: int = Field(0, ge=0)
    output: int = Field(0, ge=0)
    cache_read: int = Field(0, ge=0)
    cache_write: int = Field(0, ge=0)

    @property
    def total(self) -> int:
        """All tokens, cached ones included."""
        return self.input + self.output + self.cache_read + self.cache_write

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(**{f: getattr(self, f) + getattr(other, f) for f in Tokens.model_fields})


class Trouble(Frozen):
    """Why something did not succeed: one of the five kinds, one sentence, a stable cause."""

    kind: TroubleKind
    message: str
    cause: str | None = None
    type: str | None = None
    """The error's class, where the kind has several."""
    exit_code: int | None = None
    limit: str | None = None
    value: float | None = None
    unit: str | None = None
    source: str | None = None

    @classmethod
    def from_error(cls, error: Mapping[str, Any]) -> Trouble:
        """From `VoidboxError.to_dict`; `errors.from_dict` makes the error of it again."""
        return cls(**{k: error[k] for k in cls.model_fields if k in error})


class BoxFacts(Frozen):
    """What a stage really ran on."""

    isolation: Isolation
    vsock: VsockKind
    domain: str
    image: str
    """The image's digest."""
    memory_mb: int
    vcpus: int
    boot_s: float
    """Seconds from the request to a box with its policy in force."""
    start: BoxStart = "cold"
    """``cold``: its kernel booted; ``clone``: restored from a template; ``spare``: a clone made beforehand."""
    start_note: str = ""
    """Why it is not a clone, where one was tried."""
    host: str | None = None
    """The host it ran on, where that is not the daemon's own."""


class CachedFrom(Frozen):
    """The stage whose result was taken instead of running again."""

    run: str
    stage: Name


class QueuePlace(Frozen):
    """How long a stage's wait for room may still be."""

    ahead: int = Field(ge=0)
    """Boxes in front of it."""
    message: str
    """What it needs and what is free, in words."""


class StageRecord(Frozen):
    """A stage's state now, and its result once it has one."""

    name: Name
    state: StageState = "queued"
    output: str | None = None
    """The agent's final answer; its beginning if it is longer than `MAX_OUTPUT` characters."""
    output_file: InputFile | None = None
    """The whole answer as an artifact, where `output` is only its beginning."""
    files: dict[RelativePath, InputFile] = Field(default_factory=dict)
    """What it left in ``/workspace/output``, by the path there."""
    attempts: int = 0
    """How often it was begun."""
    cached: CachedFrom | None = None
    """Set if the result is an earlier one and nothing ran."""
    queue: QueuePlace | None = None
    """Set while it waits for room."""
    box: BoxFacts | None = None
    model: str | None = None
    model_source: ModelSource | None = None
    tokens: Tokens = Tokens()
    cost_usd: float | None = None
    """Dollars at list price; None: unpriced. A scripted model costs nothing and is labelled, so it is 0."""
    unpriced: bool = False
    """A call that may have cost something had no known price; `cost_usd` is None from then on."""
    turns: int = 0
    """Model calls that were answered."""
    tool_calls: int = 0
    denied: int = 0
    """How often the policy forbade something."""
    connections: int = 0
    """Connections that left the box, or were to."""
    bytes_out: int = 0
    """From the box, by these connections."""
    bytes_in: int = 0
    started_at: float | None = None
    """UNIX time, seconds."""
    finished_at: float | None = None
    trouble: Trouble | None = None

    @property
    def duration_s(self) -> float | None:
        """Seconds from start to end; None while it has not ended."""
        if self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at


class RunRecord(Frozen):
    """A run: the exact spec, and what became of it."""

    id: str
    spec: RunSpec
    state: RunState = "queued"
    created_at: float
    finished_at: float | None = None
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    trouble: Trouble | None = None

    @property
    def cost_usd(self) -> float | None:
        """Dollars of all stages; None if any of them is unpriced."""
        costs = [s.cost_usd for s in self.stages.values() if s.unpriced or s.turns or s.tokens.total]
        return None if any(c is None for c in costs) else sum((c or 0.0 for c in costs), 0.0)

    @property
    def outputs(self) -> dict[str, str]:
        """Stage to output, for those that succeeded; long outputs' beginnings."""
        done = ((name, s) for name, s in self.stages.items() if s.state == "succeeded")
        return {name: s.output for name, s in done if s.output is not None}

    @property
    def result(self) -> str | None:
        """What the run answers, as `RunSpec.result` says; None while, or if, there is nothing."""
        return self.answer(self.outputs)

    def answer(self, outputs: Mapping[str, str]) -> str | None:
        """`result` of `outputs`, which may be whole where the record's are beginnings."""
        wanted = self.spec.result
        if isinstance(wanted, str):
            return outputs.get(wanted)
        if wanted is None:
            names = (s.box.name for s in reversed(self.spec.stages))
            return next((outputs[name] for name in names if name in outputs), None)
        if not any(name in outputs for name in wanted.leaves):
            return None
        try:
            return merged(wanted, outputs)
        except CommandFailed:
            return None  # the outputs do not fit the reducer; each is still there by itself


assert set(get_args(StageState)) >= TERMINAL
