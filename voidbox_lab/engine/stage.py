"""Runs one stage: opens its box, provisions it, drives its agent, collects the answer, closes the box.

All the I/O of a stage is here and no decision about other stages; those are the state machine's.
Whatever a guest sends is bounded here before it becomes an event.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import anyio

from voidbox_lab.agents import Adapter, Launch, Parser
from voidbox_lab.box.trouble import first_error
from voidbox_lab.engine.lines import Lines
from voidbox_lab.engine.moves import Progress
from voidbox_lab.engine.ports import Box, Boxes, Exit, Process
from voidbox_lab.errors import BoxLost, CommandFailed, LimitExceeded, VoidboxError
from voidbox_lab.spec import InputFile, Stage, VoidBoxSpec, is_json, merged
from voidbox_lab.spec.events import MAX_TEXT, AgentLog, Body, BoxBooted, ModelCall, Notice, ToolCall

INPUT_DIR = "/workspace/input"
TELEMETRY_S = 1.0
CLOSE_S = 20.0
"""Bound on closing a box; what is left then is swept by the next start."""
GRACE_S = 15.0
"""What the guest gets, beyond a stage's time-out, to end the agent itself before the host stops waiting."""
PROVISION_S = 120.0
"""Bound on putting inputs and skills into a box, beyond what their size takes at `PROVISION_RATE`."""
PROVISION_RATE = 5 << 20
"""Bytes a second that even a slow box takes."""
KILL_S = 3.0
"""What a cancelled agent's processes get to be killed in the guest, before the box goes with all that is in it."""
MANY_NEEDS = 16
"""A stage that needs more stages than this finds their outputs merged in one file, and not one by one."""
MAX_OUTPUT_BYTES = 64 << 20
"""Most bytes an agent may write to its standard output and error together."""
MAX_INPUT_JSON = 128 * 1024
"""Largest tool input kept in an event, in characters of JSON."""

log = logging.getLogger(__name__)
Emit = Callable[[Body], Awaitable[None]]


class Session(Protocol):
    """A registered gateway session: the guest's URL of the gateway, and the token it shows there."""

    @property
    def base_url(self) -> str: ...
    @property
    def token(self) -> str: ...
    @property
    def socket(self) -> Path | None: ...
    def trouble(self) -> VoidboxError | None:
        """Why the latest model request failed on the host's side, if it did."""
        ...

    async def close(self) -> None:
        """End its requests, upstream first, and let no more in. Bounded; twice is allowed."""
        ...


@dataclass(frozen=True)
class NoSession:
    """The session of a stage that has no model: its box has no way out at all."""

    base_url: str = ""
    token: str = ""
    socket: Path | None = None

    def trouble(self) -> None:
        """Nothing was asked, so nothing failed."""

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class StageJob:
    """A stage that may start now."""

    run: str
    stage: Stage
    inputs: Mapping[str, Path]
    """File name in the guest to a verified file on the host."""
    upstream: Mapping[str, str]
    """Stage to its output, for every stage this one needs that has one."""
    files: Mapping[str, InputFile] = field(default_factory=dict)
    """The files of `inputs` by their digests."""
    metered: Callable[[ModelCall], None] = field(default=lambda _call: None, compare=False)
    """Told of each model call of the stage when it has ended; must not block."""

    @property
    def box(self) -> VoidBoxSpec:
        """What is to run."""
        return self.stage.box


@dataclass(frozen=True)
class Host:
    """What a stage needs from this process."""

    boxes: Boxes
    adapter: Callable[[str], Adapter]
    """By name; raises `UserError` for one that is not known."""
    session: Callable[[StageJob], AbstractAsyncContextManager[Session]]
    """An async context manager of a `Session`: registered on entry, revoked on exit."""


Moved = Callable[[Progress], Awaitable[None]]


async def run_stage(
    job: StageJob, host: Host, emit: Emit, moved: Moved, seen: Callable[[Box], None] = lambda _box: None
) -> str:
    """Run `job` to its end and return the agent's answer. The box is closed when this returns or raises.

    Cancelled, it lets go in this order, each step bounded: the model's streams, upstream first; the guest's
    processes; the box.

    Args:
        seen: told of the box once its agent is about to start.

    Raises:
        VoidboxError: one of the five kinds; anything else is a fault of this program.
    """
    adapter = host.adapter(job.box.adapter)
    await moved("booting")
    registered = host.session(job) if job.box.model is not None else nullcontext(NoSession())
    async with registered as session, _open(job, host, adapter, session) as box:
        await emit(BoxBooted(facts=box.facts))
        if box.facts.start_note:
            await emit(Notice(level="warning", message=f"Booted, not cloned: {box.facts.start_note}"))
        await moved("provisioning")
        with _provisioning(job):
            spec = await _provision_inputs(box, job)
            launch = adapter.prepare(spec, spec.skills, session.base_url, session.token)
            for path, data in launch.files.items():
                await box.put(data, path)
        if job.stage.stdin_from is not None:
            launch = replace(launch, stdin=job.upstream.get(job.stage.stdin_from, "").encode())
        seen(box)
        await moved("running")
        parser = adapter.parser()
        ended = await _drive(box, job, launch, parser, emit, session)
        await moved("collecting")
        try:
            return _collect(job, parser, ended)
        except CommandFailed as e:
            # The agent gave up because its model could not be reached: not the agent's fault.
            if trouble := session.trouble():
                raise trouble from e
            raise


@asynccontextmanager
async def _open(job: StageJob, host: Host, adapter: Adapter, session: Session) -> AsyncIterator[Box]:
    spec = job.box
    box: Box = await host.boxes.open(
        memory_mb=spec.memory_mb,
        vcpus=spec.vcpus,
        image=spec.image,
        agents=(adapter.layer,) if adapter.layer else (),
        gateway_socket=session.socket,
        policy=spec.policy,
        volumes=spec.volumes,
    )
    try:
        yield box
    finally:
        # Shielded: a cancelled stage must not leave its box behind.
        with anyio.move_on_after(CLOSE_S, shield=True) as scope:
            try:
                await box.close()
            except Exception:
                log.exception("closing box %s failed; the next start sweeps it", box.id)
        if scope.cancelled_caught:
            log.error("box %s did not close within %g s; the next start sweeps it", box.id, CLOSE_S)


@contextmanager
def _provisioning(job: StageJob) -> Iterator[None]:
    """Bound on provisioning, which grows with what is to be put in."""
    size = sum(path.stat().st_size for path in job.inputs.values())
    size += 2 * sum(len(text) for text in job.upstream.values())
    seconds = round(PROVISION_S + size / PROVISION_RATE, 1)
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise LimitExceeded(
            f"Stage {job.box.name!r} was stopped: putting {size / (1 << 20):.1f} MiB of inputs into its box took "
            f"longer than {seconds:g} s; give it smaller inputs, or try again when this machine is less busy.",
            limit="time",
            value=seconds,
            unit="s",
        )


async def _provision_inputs(box: Box, job: StageJob) -> VoidBoxSpec:
    """Put the inputs and the outputs of earlier stages in; the spec with a note about the latter."""
    for name, source in job.inputs.items():
        await box.put(source, f"{INPUT_DIR}/{name}")
    notes = []
    if len(job.upstream) <= MANY_NEEDS:
        for name, text in job.upstream.items():
            await box.put(text.encode(), f"{INPUT_DIR}/{name}.md")
            notes.append(f"- {INPUT_DIR}/{name}.md: the answer of stage {name!r}")
    if merge := job.stage.merging:
        name = "merged.json" if is_json(merge) else "merged.md"
        await box.put(merged(merge, job.upstream).encode(), f"{INPUT_DIR}/{name}")
        how = ", in this order, null for none" if merge.by == "json" else f" ({merge.by})"
        notes.append(f"- {INPUT_DIR}/{name}: the answers of {', '.join(merge.leaves[:MANY_NEEDS])} merged{how}")
    if not notes or job.box.command is not None:
        return job.box
    files = "\n".join(notes)
    return job.box.model_copy(
        update={"prompt": f"{job.box.prompt}\n\nEarlier stages left their answers:\n{files}"}
    )


async def _drive(box: Box, job: StageJob, launch: Launch, parser: Parser, emit: Emit, session: Session) -> Exit:
    """Start the agent, carry its events, and return its `Exit`."""
    timeout_s = job.box.timeout_s
    budget = _Room(MAX_OUTPUT_BYTES)
    with _bounded(timeout_s + GRACE_S, job, timeout_s):
        process: Process = await box.start_exec(
            launch.argv, env=dict(launch.env), cwd="/workspace", stdin=launch.stdin, timeout_s=timeout_s
        )
        try:
            async with anyio.create_task_group() as background:
                background.start_soon(_watch, box, emit)
                async with anyio.create_task_group() as streams:
                    streams.start_soon(_events, process.stdout, parser, emit, budget)
                    streams.start_soon(_logs, process.stderr, emit, budget)
                ended = await process.wait()
                background.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        except anyio.get_cancelled_exc_class():
            # The upstream first: a model that goes on talking to nobody goes on costing.
            with anyio.CancelScope(shield=True):
                await session.close()
                await process.kill(KILL_S)
            raise
        if ended.timed_out:
            raise _too_slow(job, timeout_s)
        return ended


def _collect(job: StageJob, parser: Parser, ended: Exit) -> str:
    """The answer, or the reason there is none."""
    name, who = job.box.name, "agent" if job.box.command is None else "command"
    result = parser.finish(ended.code)
    if ended.signal is not None:
        how = f"was killed by signal {ended.signal}"
        if ended.oom:
            raise LimitExceeded(
                f"The {who} of stage {name!r} used up the box's {job.box.memory_mb} MiB of memory; give it more.",
                limit="memory",
                value=job.box.memory_mb,
                unit="MiB",
                source="stage",
            )
    else:
        how = f"ended with exit code {ended.code}"
    if ended.code == 0 and not result.is_error and result.output is not None:
        return result.output
    said = f": {_cut(result.output, 500)}" if result.output else "; its log says why"
    raise CommandFailed(
        f"The {who} of stage {name!r} {how} without a usable answer{said}",
        exit_code=ended.code,
        cause="agent-failed",
    )


class _Room:
    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise LimitExceeded(
                f"The agent wrote more than {MAX_OUTPUT_BYTES >> 20} MiB of output and was stopped.",
                limit="output",
                value=MAX_OUTPUT_BYTES,
                unit="bytes",
            )


async def _events(stream: AsyncIterable[bytes], parser: Parser, emit: Emit, budget: _Room) -> None:
    lines = Lines()
    async for chunk in stream:
        budget.spend(len(chunk))
        for line in lines.feed(chunk) if parser.reads_lines else [chunk]:
            for body in parser.feed(line):
                await emit(_bounded_body(body))
    if rest := lines.rest():
        for body in parser.feed(rest):
            await emit(_bounded_body(body))


async def _logs(stream: AsyncIterable[bytes], emit: Emit, budget: _Room) -> None:
    lines = Lines(limit=MAX_TEXT)
    async for chunk in stream:
        budget.spend(len(chunk))
        # One event for all the lines of a chunk: a chatty agent must not cost an event a line.
        whole = b"\n".join(lines.feed(chunk))
        for start in range(0, len(whole), MAX_TEXT):
            await emit(AgentLog(text=whole[start : start + MAX_TEXT].decode(errors="replace")))
    if rest := lines.rest():
        await emit(AgentLog(text=rest[:MAX_TEXT].decode(errors="replace")))


async def _watch(box: Box, emit: Emit) -> None:
    try:
        async for sample in box.telemetry(TELEMETRY_S):
            await emit(sample)
    except BoxLost:
        return  # whoever waits for the agent learns of it too, and says it better
    except VoidboxError as e:
        await emit(Notice(level="warning", message=f"Telemetry stopped: {e.message}"))


@contextmanager
def _bounded(seconds: float, job: StageJob, stated_s: float) -> Iterator[None]:
    """`anyio.fail_after` that raises the project's own error, with the stated bound in it."""
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise _too_slow(job, stated_s)


def _too_slow(job: StageJob, seconds: float) -> LimitExceeded:
    return LimitExceeded(
        f"Stage {job.box.name!r} was stopped: the agent took longer than {seconds:g} s; raise its timeout.",
        limit="time",
        value=seconds,
        unit="s",
        source="stage",
    )


def _bounded_body(body: Body) -> Body:
    """`body`, with a tool input that is too large for an event replaced by its beginning, visibly."""
    if isinstance(body, ToolCall):
        text = json.dumps(body.input, ensure_ascii=False)
        if len(text) > MAX_INPUT_JSON:
            cut = {"truncated": f"{text[:2000]}…", "characters": len(text)}
            return body.model_copy(update={"input": cut})
    return body


def _cut(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
