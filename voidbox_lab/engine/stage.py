"""Runs one stage: opens its box, provisions it, drives its agent, collects the answer, closes the box.

All the I/O of a stage is here and no decision about other stages; those are the state machine's.
Whatever a guest sends is bounded here before it becomes an event.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace

import anyio

from voidbox_lab.agents import Adapter, Launch, Parser
from voidbox_lab.box.folders import at_first, bring_back, mounted
from voidbox_lab.box.trouble import first_error
from voidbox_lab.engine.collect import answer, collecting, kept_files, shortened
from voidbox_lab.engine.job import Emit, Host, Moved, NoSession, Result, Session, StageJob
from voidbox_lab.engine.lines import Lines
from voidbox_lab.engine.making import noticed
from voidbox_lab.engine.ports import Box, Exit, Process
from voidbox_lab.engine.provision import provisioning, put_inputs, put_skills
from voidbox_lab.engine.witness import Witness
from voidbox_lab.errors import BoxLost, CommandFailed, LimitExceeded, VoidboxError
from voidbox_lab.spec.events import MAX_TEXT, AgentLog, Body, BoxBooted, Notice, ToolCall
from voidbox_lab.spec.tracing import TRACEPARENT

TELEMETRY_S = 1.0
CLOSE_S = 20.0
"""Bound on closing a box; what is left then is swept by the next start."""
GRACE_S = 15.0
"""What the guest gets, beyond a stage's time-out, to end the agent itself before the host stops waiting."""
KILL_S = 3.0
"""What a cancelled agent's processes get to be killed in the guest, before the box goes with all that is in it."""
MAX_OUTPUT_BYTES = 64 << 20
"""Most bytes an agent may write to its standard output and error together."""
MAX_INPUT_JSON = 128 * 1024
"""Largest tool input kept in an event, in characters of JSON."""

log = logging.getLogger(__name__)


async def run_stage(
    job: StageJob, host: Host, emit: Emit, moved: Moved, seen: Callable[[Box], None] = lambda _box: None
) -> Result:
    """Run `job` to its end and return what it brought. The box is closed when this returns or raises.

    Cancelled, it lets go in this order, each step bounded: the model's streams, upstream first; the guest's
    processes; the box.

    Args:
        seen: told of the box once its agent is about to start.

    Raises:
        VoidboxError: one of the five kinds; anything else is a fault of this program.
    """
    adapter = host.adapter(job.box.adapter)
    witness = Witness(emit)
    emit = witness.emit
    await moved("booting")
    registered = host.session(job) if job.box.model is not None else nullcontext(NoSession())
    async with (
        registered as session,
        _open(job, host, adapter, session, witness) as box,
        AsyncExitStack() as folders,
    ):
        await emit(BoxBooted(facts=box.facts))
        if box.facts.start_note:
            await emit(Notice(level="warning", message=f"Booted, not cloned: {box.facts.start_note}"))
        if loosened := job.box.loosened:
            what = shortened(", ".join(loosened), 900)
            text = f"Stage {job.box.name!r} runs with a looser policy than the default: {what}."
            await emit(Notice(level="warning", message=text))
        await moved("provisioning")
        copied = await folders.enter_async_context(mounted(box, job.box.mounts, job.box.effective_policy))
        for one in copied:
            await emit(one.event)
            if one.contents.left_out.count:
                what = f"Of the folder {one.mount.source} was left out: {one.contents.left_out}."
                await emit(Notice(level="warning", message=what))
        with provisioning(job):
            spec = await put_inputs(box, job)
            await put_skills(box, job, adapter)
            launch = adapter.prepare(spec, session.base_url, session.token)
            for path, data in launch.files.items():
                await box.put(data, path)
        if job.traceparent:
            launch = replace(launch, env={TRACEPARENT: job.traceparent, **launch.env})
        if job.stage.stdin_from is not None:
            launch = replace(launch, stdin=job.upstream.get(job.stage.stdin_from, "").encode())
        seen(box)
        await moved("running")
        parser = adapter.parser()
        ended = await _drive(box, job, launch, parser, emit, session)
        await moved("collecting")
        try:
            text = answer(job, parser, ended)
        except CommandFailed as e:
            # The agent gave up because its model could not be reached: not the agent's fault.
            if trouble := session.trouble():
                raise trouble from e
            raise
        with collecting(job):
            files = await kept_files(box, job, emit)
        async with aclosing(bring_back(box, copied, f"voidbox-{job.run}-{job.box.name}")) as brought:
            async for event in brought:
                await emit(event)
        return Result(text, files)


@asynccontextmanager
async def _open(
    job: StageJob, host: Host, adapter: Adapter, session: Session, witness: Witness
) -> AsyncIterator[Box]:
    spec = job.box
    with noticed(witness.emit):
        box: Box = await host.boxes.open(
            memory_mb=spec.memory_mb,
            vcpus=spec.vcpus,
            rootfs=spec.rootfs(adapter.layer),
            gateway_socket=session.socket,
            policy=at_first(spec.effective_policy, spec.mounts),
            volumes=spec.volumes,
            egress=witness.egress,
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
                    streams.start_soon(_denials, process, emit)
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


async def _denials(process: Process, emit: Emit) -> None:
    async for denied in process.denials():
        await emit(denied)


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
