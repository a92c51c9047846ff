"""The events of a run: the one vocabulary of engine, store, daemon, widgets and command line.

An event is `Event(seq, run, at, stage, body)`; the body's ``type`` says what it is. Sequence numbers
start at 1 and have no gaps within a run, so a reader resumes by the last number it has seen.
Text in events came out of a guest: renderers escape it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from voidbox_lab.spec.base import Frozen
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.model import ModelSource
from voidbox_lab.spec.run import BoxFacts, CachedFrom, RunState, StageState, Tokens, Trouble
from voidbox_lab.spec.skill import RelativePath

MAX_TEXT = 64 * 1024
"""Longest text in one event, in characters; longer ones are split or cut by the producer, visibly."""


class RunChanged(Frozen):
    """The run entered a state; `trouble` on failure."""

    type: Literal["run"] = "run"
    state: RunState
    trouble: Trouble | None = None


class StageChanged(Frozen):
    """A stage entered a state; `trouble` on failure or before another attempt, `output` on success."""

    type: Literal["stage"] = "stage"
    state: StageState
    trouble: Trouble | None = None
    output: str | None = None
    output_file: InputFile | None = None
    """The whole output, where `output` is only its beginning."""
    files: dict[RelativePath, InputFile] = Field(default_factory=dict)
    """On success: what it left in ``/workspace/output``."""
    attempt: int | None = None
    """The number of the attempt that begins, from 1 on."""
    cached: CachedFrom | None = None


class Queued(Frozen):
    """A stage waits for room; sent when the wait begins and as it gets on."""

    type: Literal["queued"] = "queued"
    ahead: int = Field(ge=0)
    """Boxes in front of it."""
    message: str = Field(max_length=1000)
    """What it needs and what is free."""


class BoxBooted(Frozen):
    """A stage's box is up and handshaken."""

    type: Literal["box"] = "box"
    facts: BoxFacts


class AgentText(Frozen):
    """A piece of the agent's visible text. Pieces with the same `block` join without a separator."""

    type: Literal["text"] = "text"
    text: str = Field(max_length=MAX_TEXT)
    block: int = 0


class ToolCall(Frozen):
    """The agent called a tool."""

    type: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    input: dict[str, Any] = Field(default_factory=dict)


class ToolResult(Frozen):
    """A tool answered."""

    type: Literal["tool_result"] = "tool_result"
    id: str
    content: str = Field(max_length=MAX_TEXT)
    is_error: bool = False


class AgentLog(Frozen):
    """A line of the agent's standard error, or of its standard output where it was not an event."""

    type: Literal["log"] = "log"
    stream: Literal["stdout", "stderr"] = "stderr"
    text: str = Field(max_length=MAX_TEXT)


class ModelCall(Frozen):
    """The gateway carried one model request to its end and metered it."""

    type: Literal["model_call"] = "model_call"
    request: str
    """The gateway's request id."""
    model: str
    source: ModelSource
    status: int
    """HTTP status the guest saw; 0 if the connection broke first."""
    tokens: Tokens = Tokens()
    cost_usd: float | None = None
    """None: unpriced."""
    duration_s: float
    first_byte_s: float | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the model answered, which is a turn of the agent's."""
        return 200 <= self.status < 300

    @property
    def is_unpriced(self) -> bool:
        """Whether it may have cost something nobody knows: only a refusal that used no tokens is surely free."""
        return self.cost_usd is None and (self.status < 400 or self.tokens.total > 0)


# A guest says these: numbers and not text that reads as one, finite, and with room to reckon with in 64 bits.
Measure = Annotated[float, Field(strict=True, ge=0, le=1e15, allow_inf_nan=False)]
Kilobytes = Annotated[int, Field(strict=True, ge=0, le=1 << 50)]
Count = Annotated[int, Field(strict=True, ge=0, le=1 << 60)]


class TopProcess(Frozen):
    """One of the busiest processes in the guest."""

    pid: Count
    name: str = Field(max_length=64)
    cpu: Measure
    """Share of one CPU since the sample before, 0 to vCPUs."""
    rss_kb: Kilobytes


class Telemetry(Frozen):
    """One sample from the guest's procfs (proc(5))."""

    type: Literal["telemetry"] = "telemetry"
    cpu: Measure
    """Busy share of all vCPUs since the sample before, 0 to 1."""
    load1: Measure
    memory_total_kb: Kilobytes
    memory_used_kb: Kilobytes
    """MemTotal minus MemAvailable."""
    disk_total_kb: Kilobytes
    disk_used_kb: Kilobytes
    disk_read_bytes: Count
    """Since boot; so are the other counters."""
    disk_write_bytes: Count
    net_rx_bytes: Count
    """From the gateway and the egress proxy, which are a box's network."""
    net_tx_bytes: Count
    processes: Count
    uptime_s: Measure
    top: tuple[TopProcess, ...] = Field((), max_length=10)


class Denied(Frozen):
    """The policy forbade something, and it did not happen; the agent was told."""

    type: Literal["denied"] = "denied"
    rule: str = Field(max_length=100)
    """The rule's name: a field of the policy, and in it what was hit: ``commands``, ``syscalls.ptrace``,
    ``write``, ``caps.pids``, ``egress``; ``request`` of a malformed one."""
    subject: str = Field(max_length=1000)
    """What it was about: a path, a system call, HOST:PORT."""
    message: str = Field(max_length=1000)
    """In one sentence, with what to do."""
    program: str = Field("", max_length=64)
    """The program that tried, by the name it gave itself (comm)."""
    count: int = Field(1, ge=1)
    """How often within a moment: repetitions are told together."""


class Egress(Frozen):
    """A connection that left the box, or was to: sent at its end."""

    type: Literal["egress"] = "egress"
    host: str = Field(max_length=300)
    """As the guest named it."""
    port: int
    verdict: Literal["allowed", "denied", "failed"]
    """``failed``: not denied, but the other side was not reached or did not answer as it should."""
    rule: str = Field("", max_length=320)
    """The pattern or profile that decided."""
    address: str | None = None
    """The IP address it went to."""
    bytes_out: int = 0
    """From the box."""
    bytes_in: int = 0
    duration_s: float = 0.0
    reason: str = Field("", max_length=1000)
    """Why it was denied, failed, or was ended, in one sentence."""
    tool_call: str | None = None
    """The tool call that was open, where just one was."""


class FileKept(Frozen):
    """A file that the stage left in ``/workspace/output`` is an artifact now."""

    type: Literal["file"] = "file"
    path: RelativePath
    file: InputFile


class Mounted(Frozen):
    """A folder of the host is in the box; or, at the end, what was changed there is back."""

    type: Literal["mount"] = "mount"
    mount: str
    """As `HostMount` is written."""
    how: Literal["copy", "virtiofs"]
    direction: Literal["in", "out"]
    files: int
    bytes: int
    digest: str
    """Of the list of all files with their digests, in canonical JSON."""


class Notice(Frozen):
    """Something the user should read that is not a failure."""

    type: Literal["notice"] = "notice"
    level: Literal["info", "warning"] = "info"
    message: str


Body = Annotated[
    RunChanged
    | StageChanged
    | Queued
    | BoxBooted
    | AgentText
    | ToolCall
    | ToolResult
    | AgentLog
    | ModelCall
    | Telemetry
    | Denied
    | Egress
    | FileKept
    | Mounted
    | Notice,
    Field(discriminator="type"),
]

BODY: TypeAdapter[Body] = TypeAdapter(Body)


class Event(Frozen):
    """One event of a run."""

    seq: int = Field(ge=1)
    run: str
    at: float
    """UNIX time, seconds."""
    stage: str | None = None
    body: Body
