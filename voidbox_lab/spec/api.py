"""What the daemon and its clients say to each other besides runs and events. Not for running anything."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from voidbox_lab.spec.base import Frozen, Name, Spec
from voidbox_lab.spec.hostmount import HostMounts
from voidbox_lab.spec.policy import Policy
from voidbox_lab.spec.run import BoxFacts, RunState
from voidbox_lab.spec.voidbox import MIN_MEMORY_MB
from voidbox_lab.spec.volume import Mounts, check_places

API_VERSION = 3
"""Raised when an old client could misread a new daemon."""


class Health(Frozen):
    """The daemon about itself."""

    version: str
    """Of the package."""
    api: int
    pid: int
    uptime_s: float
    runs: int
    """In progress."""
    boxes: int
    """Open now."""
    keys: tuple[str, ...] = ()
    """Names of the model keys it holds; never their values."""
    tcp: str | None = None
    """The URL it listens at over TCP, if it was asked to."""


class Swept(Frozen):
    """What a sweep did."""

    removed: tuple[str, ...]
    """Names of domains, processes and directories whose owner was dead."""


class PruneRequest(Spec):
    """Which runs to forget: those that have ended and meet every test that is given; with none, no run."""

    older_than_s: float | None = Field(None, ge=0, le=1e10, allow_inf_nan=False)
    """Ended more than so many seconds ago."""
    keep: int | None = Field(None, ge=0, le=1 << 31)
    """Not among so many newest runs."""
    states: tuple[RunState, ...] | None = Field(None, max_length=8)
    dry_run: bool = False
    """Only say what would go."""


class PruneReport(Frozen):
    """What went, or would go."""

    runs: tuple[str, ...]
    artifacts: int
    bytes: int
    """Of the artifacts."""


class ExecRequest(Spec):
    """A command in a fresh box."""

    argv: tuple[str, ...] = Field(min_length=1, max_length=4096)
    memory_mb: int = Field(512, ge=MIN_MEMORY_MB, le=1 << 20)
    vcpus: int = Field(1, ge=1, le=64)
    image: Name = "default"
    timeout_s: float = Field(300, gt=0, le=86400)
    """Bound on the command, in seconds; boot is bounded apart."""
    env: dict[str, str] = Field(default_factory=dict, max_length=256)
    cwd: str = "/workspace"
    stdin: str | None = Field(None, max_length=8 << 20)
    """Base64."""
    policy: Policy = Policy()
    volumes: Mounts = ()
    mounts: HostMounts = ()
    """What it changed in a writable one is brought back if it ends with exit code 0."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        check_places([m.place for m in self.volumes] + [m.place for m in self.mounts])
        return self


MAX_SHELL_MESSAGE = 64 * 1024
"""Bytes of the longest WebSocket message of a shell, either way."""


class Resize(Frozen):
    """The client's terminal has another size, in characters; a text message of a shell's WebSocket."""

    type: Literal["resize"] = "resize"
    rows: int = Field(24, ge=1, le=4096)
    cols: int = Field(80, ge=1, le=4096)


class ShellRequest(Spec):
    """A program on a terminal, in a fresh box or in that of a stage which runs now: the first message of its
    WebSocket. After it binary messages are what is typed, and `Resize` may come at any time."""

    argv: tuple[str, ...] = Field((), max_length=4096)
    """Nothing: the agent's login shell, or /bin/sh if the image lacks that."""
    run: str | None = Field(None, min_length=1, max_length=200)
    stage: str | None = Field(None, min_length=1, max_length=200)
    """With `run`: in the box of this stage, as it is. The next six are for a fresh box alone."""
    memory_mb: int = Field(512, ge=MIN_MEMORY_MB, le=1 << 20)
    vcpus: int = Field(1, ge=1, le=64)
    image: Name = "default"
    policy: Policy = Policy()
    volumes: Mounts = ()
    mounts: HostMounts = ()
    """What was changed in a writable one is brought back when the program ends, however it does."""
    env: dict[str, str] = Field(default_factory=dict, max_length=256)
    cwd: str = "/workspace"
    rows: int = Field(24, ge=1, le=4096)
    cols: int = Field(80, ge=1, le=4096)
    term: str = Field("dumb", pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")
    """TERM, the terminal's kind (terminfo(5))."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.run is None) is not (self.stage is None):
            raise ValueError("a stage is named by both run and stage")
        check_places([m.place for m in self.volumes] + [m.place for m in self.mounts])
        return self


class ShellAlive(Frozen):
    """Sent every few seconds, so that each side notices that the other is gone."""

    type: Literal["alive"] = "alive"


class ExecWaiting(Frozen):
    """There is no room for the box yet; sent when the wait begins and as it gets on."""

    type: Literal["waiting"] = "waiting"
    reason: str
    """``turn``, ``memory``, ``vcpus`` or ``host-memory``; see `voidbox_lab.engine.admission.Waiting`."""
    ahead: int
    """Boxes in front of it."""
    message: str
    """The same in one sentence, with figures."""


class ExecStarted(Frozen):
    """The box is up and the command runs."""

    type: Literal["started"] = "started"
    facts: BoxFacts


class ExecOutput(Frozen):
    """Bytes the command wrote."""

    type: Literal["output"] = "output"
    stream: Literal["stdout", "stderr"]
    data: str
    """Base64."""


class ExecExit(Frozen):
    """The command ended: with a code, or by a signal."""

    type: Literal["exit"] = "exit"
    code: int | None
    signal: int | None = None
    timed_out: bool = False
    oom: bool = False
    """The guest's kernel killed one of its processes for want of memory."""
    duration_s: float


class Failed(Frozen):
    """A stream ends with an error: `VoidboxError.to_dict`."""

    type: Literal["failed"] = "failed"
    error: dict[str, Any]


class CheckStep(Frozen):
    """One thing the daemon tried, in the order tried."""

    type: Literal["step"] = "step"
    name: str
    """``image``, ``libvirt``, ``accelerator``, ``vsock``, ``boot``, ``exec``, ``telemetry``, ``keys``."""
    state: Literal["started", "ok", "warning", "failed"]
    message: str = ""
    """What was found, or the error with its fix, in one sentence."""
    seconds: float | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    """The same in numbers."""


class CheckReport(Frozen):
    """The end of a check."""

    type: Literal["report"] = "report"
    ok: bool
    """Whether a box booted and answered."""
    steps: tuple[CheckStep, ...]


ExecEvent = Annotated[ExecWaiting | ExecStarted | ExecOutput | ExecExit | Failed, Field(discriminator="type")]
EXEC_EVENT: TypeAdapter[ExecEvent] = TypeAdapter(ExecEvent)
ShellEvent = Annotated[ExecWaiting | ExecStarted | ShellAlive | ExecExit | Failed, Field(discriminator="type")]
"""A text message from the daemon; what the terminal shows comes in binary ones, after ``started``."""
SHELL_EVENT: TypeAdapter[ShellEvent] = TypeAdapter(ShellEvent)
CheckEvent = Annotated[CheckStep | CheckReport | Failed, Field(discriminator="type")]
CHECK_EVENT: TypeAdapter[CheckEvent] = TypeAdapter(CheckEvent)
