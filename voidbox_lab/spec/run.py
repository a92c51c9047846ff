"""A run as data, and the record of what it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from voidbox_lab.errors import TroubleKind
from voidbox_lab.spec.base import Frozen, Name, Spec
from voidbox_lab.spec.model import ModelSource
from voidbox_lab.spec.voidbox import VoidBoxSpec

StageState = Literal[
    "queued",
    "booting",
    "provisioning",
    "running",
    "collecting",
    "succeeded",
    "failed",
    "cancelled",
    "skipped",
]
RunState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Isolation = Literal["kvm", "tcg"]
VsockKind = Literal["kernel", "user"]
BoxStart = Literal["cold", "clone", "spare"]

TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "skipped"})


class InputFile(Frozen):
    """A file that goes into ``/workspace/input``; its bytes are an artifact with this digest."""

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Stage(Spec):
    """A place in a run: a box and the stages whose output it needs."""

    box: VoidBoxSpec
    needs: tuple[Name, ...] = ()


class RunSpec(Spec):
    """Everything a run is. Hashed, stored and replayed as it stands."""

    version: Literal[1] = 1
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=256)
    inputs: dict[str, InputFile] = Field(default_factory=dict, max_length=1024)
    """File name (no directory) to file; every stage without needs sees all of them."""

    @model_validator(mode="after")
    def _closed(self) -> RunSpec:
        names = [s.box.name for s in self.stages]
        seen: set[str] = set()
        for stage in self.stages:
            if stage.box.name in seen:
                raise ValueError(f"stage {stage.box.name!r} is named twice")
            for need in stage.needs:
                # Declared order is a topological order, so a cycle cannot be written down.
                if need not in seen:
                    known = "declared later" if need in names else "not in this run"
                    raise ValueError(f"stage {stage.box.name!r} needs {need!r}, which is {known}")
            seen.add(stage.box.name)
        for name in self.inputs:
            if "/" in name or "\0" in name or name in {"", ".", ".."} or len(name.encode()) > 255:
                raise ValueError(f"input {name!r} is not a plain file name")
        return self


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


class StageRecord(Frozen):
    """A stage's state now, and its result once it has one."""

    name: Name
    state: StageState = "queued"
    output: str | None = None
    """The agent's final answer."""
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
    def result(self) -> str | None:
        """The output of the last stage that succeeded, in declared order."""
        outputs = [self.stages[s.box.name].output for s in self.spec.stages if s.box.name in self.stages]
        return next((o for o in reversed(outputs) if o is not None), None)


assert set(get_args(StageState)) >= TERMINAL
