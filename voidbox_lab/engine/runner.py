"""Drives runs: carries out what the state machine commands and tells it what happened.

One `Runner` per daemon, with one task group for all runs. Not for how a stage works (`stage`), where (`executor`),
nor for what may happen when (`machine`).
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from voidbox_lab.engine import moves as m
from voidbox_lab.engine import verdicts
from voidbox_lab.engine.cache import Hit, StageCache
from voidbox_lab.engine.executor import Executor
from voidbox_lab.engine.job import StageJob
from voidbox_lab.engine.journal import Journal
from voidbox_lab.engine.machine import Machine, step
from voidbox_lab.engine.making import noticed
from voidbox_lab.engine.outputs import Output, Outputs
from voidbox_lab.engine.ports import Box
from voidbox_lab.engine.rest import end_abruptly, trouble_of
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.spec import TERMINAL, RunRecord, RunSpec, Stage, Trouble
from voidbox_lab.spec.events import Body, ModelCall, StageChanged
from voidbox_lab.spec.tracing import traceparent
from voidbox_lab.store import Artifacts, Store

MAX_RUNS = 64
"""Most runs in progress at once."""
MAX_INPUTS = 64
"""Most of what happened at once whose consequences are written together, in one append."""
GIVE_UP_S = 10.0
"""How long a run whose driver failed tries to leave a terminal event; the next start does it otherwise."""

log = logging.getLogger(__name__)


@dataclass
class _Active:
    """A run in progress."""

    spec: RunSpec
    machine: Machine
    inbox: MemoryObjectSendStream[m.Input]
    outputs: Outputs
    done: anyio.Event = field(default_factory=anyio.Event)
    scopes: dict[str, CancelScope] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """What earlier attempts of a stage took of its budget of seconds."""
    brought: dict[str, tuple[Output, str | None]] = field(default_factory=dict)
    """What a stage brought, and the key to keep it by, until the machine says whether it counts."""
    verified: dict[str, Path] = field(default_factory=dict)
    """Input files by digest, checked once for the whole run."""

    def __post_init__(self) -> None:
        self.stages = {s.box.name: s for s in self.spec.stages}

    def tell(self, given: m.Input) -> None:
        """Put `given` into the inbox, which has no bound: what comes in is bounded where it arises."""
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # the run ended this very moment
            self.inbox.send_nowait(given)


class Runner:
    """Submits, drives, pauses, resumes and cancels runs. Use as ``async with Runner.serving(…) as runner``."""

    def __init__(
        self, store: Store, artifacts: Artifacts, journal: Journal, executor: Executor, cache: StageCache
    ) -> None:
        self.store, self.artifacts, self.journal = store, artifacts, journal
        self._executor, self._cache = executor, cache
        self._tasks: TaskGroup | None = None
        self._active: dict[str, _Active] = {}
        self._entering = anyio.Lock()
        """Held while a run that nobody drives gets a driver or an end, so that it never gets both."""
        self._closing = False

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, store: Store, artifacts: Artifacts, journal: Journal, executor: Executor, cache: StageCache
    ) -> AsyncIterator[Runner]:
        """A runner with its journal served; on exit, whatever still runs is cancelled and its boxes closed."""
        self = cls(store, artifacts, journal, executor, cache)
        async with AsyncExitStack() as stack:
            writers = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(writers.cancel_scope.cancel)
            writers.start_soon(journal.serve)
            stack.push_async_callback(_flush_last, journal)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._tasks.cancel_scope.cancel)
            yield self

    @property
    def active(self) -> tuple[str, ...]:
        """Runs in progress, paused ones included."""
        return tuple(self._active)

    def box(self, run: str, stage: str) -> Box:
        """The box in which a stage is at work now.

        Raises:
            UserError: cause ``no-box``: it has none, or it is on another machine.
        """
        box = self._executor.box(run, stage) if run in self._active else None
        if box is None:
            raise UserError(
                f"Stage {stage[:80]!r} of {run[:80]} has no box here now; `voidbox show` tells its state.",
                cause="no-box",
            )
        return box

    async def submit(self, spec: RunSpec) -> RunRecord:
        """Check, record and begin a run.

        Raises:
            UserError: an unknown agent, an input that was not uploaded, more memory than the host can give.
            LimitExceeded: too many runs at once.
        """
        async with self._entering:
            await self._check(spec)
            run = f"run-{secrets.token_hex(6)}"
            record = await self.store.create_run(run, spec, at=time.time())
            self._start(run, spec, Machine.of(spec), Outputs(self.artifacts))
            return record

    async def pause(self, run: str) -> RunRecord:
        """Launch nothing more of `run`; what is at work goes on. Harmless for one that is paused or has ended."""
        return await self._told(run, m.Pause())

    async def resume(self, run: str) -> RunRecord:
        """Let a paused run go on, or one whose daemon died: stages that had succeeded keep their outputs.

        Raises:
            UserError: the run has ended (cause ``run-over``), or what `submit` raises.
        """
        async with self._entering:
            if run in self._active:
                return await self._told(run, m.Resume())
            record = await self.store.get_run(run)
            if record.state in TERMINAL:
                said = "run it again: what succeeded is taken from the cache"
                raise UserError(f"The run {run} has ended ({record.state}); {said}.", cause="run-over")
            await self._check(record.spec)
            outputs = Outputs(self.artifacts, record)
            self._start(run, record.spec, Machine.of(record.spec, record), outputs)
            return record

    async def cancel(self, run: str, *, why: str = "It was cancelled by the user.") -> RunRecord:
        """Ask a run to end; returns at once. A run that has ended already stays as it is."""
        trouble = Trouble(kind="cancelled", message=why, cause="cancelled")
        if run in self._active:
            return await self._told(run, m.Cancel(trouble))
        async with self._entering:
            if run in self._active:
                return await self._told(run, m.Cancel(trouble))
            record = await self.store.get_run(run)
            if record.state not in TERMINAL:
                await end_abruptly(self.journal, record, trouble)
                record = await self.store.get_run(run)
            return record

    async def finished(self, run: str, timeout_s: float) -> bool:
        """Wait until `run` is over; False if it is not within `timeout_s`."""
        active = self._active.get(run)
        if active is None:
            return True
        with anyio.move_on_after(timeout_s):
            await active.done.wait()
            return True
        return False

    async def shutdown(self, timeout_s: float, *, why: str = "The daemon is shutting down.") -> None:
        """Take no more runs, cancel all, and wait up to `timeout_s` for their boxes to close."""
        self._closing = True
        for run in self.active:
            await self.cancel(run, why=why)
        with anyio.move_on_after(timeout_s):
            for active in list(self._active.values()):
                await active.done.wait()

    async def _check(self, spec: RunSpec) -> None:
        """That a run of `spec` may begin now."""
        if self._closing or self._tasks is None:
            raise ProviderError("The daemon is shutting down; try again in a moment.", cause="shutdown")
        if len(self._active) >= MAX_RUNS:
            raise LimitExceeded(
                f"{MAX_RUNS} runs are in progress; wait for one to end or cancel one.",
                limit="runs",
                value=MAX_RUNS,
            )
        for stage in spec.stages:
            self._executor.check(stage)
        files = {f"{s.box.name}/{n}": f for s in spec.stages for n, f in s.inputs.items()} | spec.inputs
        for stage in spec.stages:
            for skill in stage.box.procedures:
                files |= {f"{skill.name}/{path}": file for path, file in skill.files.items()}
        for name, file in files.items():
            if not await self.artifacts.has(file.digest):
                raise UserError(f"The input {name!r} ({file.digest}) was not uploaded; upload it first.")

    async def _told(self, run: str, given: m.Input) -> RunRecord:
        if active := self._active.get(run):
            active.tell(given)
        return await self.store.get_run(run)

    def _start(self, run: str, spec: RunSpec, machine: Machine, outputs: Outputs) -> None:
        assert self._tasks is not None, "checked before"
        send, receive = anyio.create_memory_object_stream[m.Input](math.inf)
        active = self._active[run] = _Active(spec, machine, send, outputs)
        self._tasks.start_soon(self._drive, run, active, receive, name=run)

    async def _drive(self, run: str, active: _Active, inbox: MemoryObjectReceiveStream[m.Input]) -> None:
        """One run, from `Begin` to its terminal event."""
        try:
            async with anyio.create_task_group() as tasks:
                await self._step(run, active, [m.Begin()], tasks)
                if (seconds := active.spec.budget.seconds) is not None:
                    tasks.start_soon(_later, active, seconds, m.TimeUp())
                while not active.machine.over:
                    given = [await inbox.receive()]
                    with suppress(anyio.WouldBlock):
                        while len(given) < MAX_INPUTS:
                            given.append(inbox.receive_nowait())
                    await self._step(run, active, given, tasks)
                tasks.cancel_scope.cancel()
        except Exception:
            log.exception("driving %s failed", run)
            await self._give_up(run)
        finally:
            inbox.close()
            self._executor.hold(run, False)
            self._active.pop(run, None)
            active.done.set()

    async def _step(self, run: str, active: _Active, given: Sequence[m.Input], tasks: TaskGroup) -> None:
        commands: list[m.Command] = []
        for each in given:
            active.machine, more = step(active.machine, each)
            commands += more
        records = [c for c in commands if isinstance(c, m.Record)]
        for record in records:
            self.journal.post(run, record.stage, record.body)
        if records:
            # Durable before anything follows from it, and before anybody is told.
            await self.journal.flush(run)
        for record in records:
            if isinstance(record.body, StageChanged) and record.stage is not None:
                await self._counted(run, active, record.stage, record.body)
        for command in commands:
            match command:
                case m.Launch(stage):
                    tasks.start_soon(self._stage, run, active, active.stages[stage], name=f"{run}/{stage}")
                case m.Interrupt(stage):
                    if scope := active.scopes.get(stage):
                        scope.cancel()  # a stage that has no scope yet looks at the machine first
                case m.Rest(stage, seconds):
                    tasks.start_soon(_later, active, seconds, m.Rested(stage))
                case m.Hold(held):
                    self._executor.hold(run, held)

    async def _counted(self, run: str, active: _Active, stage: str, body: StageChanged) -> None:
        """Take what a stage brought if it succeeded by the machine's word: others build on it, now and later."""
        if body.state not in TERMINAL or stage not in active.brought:
            return
        output, key = active.brought.pop(stage)
        if body.state == "succeeded":
            active.outputs.add(stage, output)
            if key is not None:
                await self._cache.keep(key, run, stage)

    async def _stage(self, run: str, active: _Active, stage: Stage) -> None:
        """One attempt of a stage; sends exactly one `Ended`, whatever happens."""
        name = stage.box.name
        ended = m.Ended(name, "cancelled")
        try:
            with CancelScope() as active.scopes[name]:
                if active.machine.stop is None and name not in active.machine.doomed:
                    ended = await self._attempt(run, active, stage)
        except Exception as e:
            ended = m.Ended(name, "failed", trouble=trouble_of(e))
        finally:
            active.scopes.pop(name, None)
            active.tell(ended)

    async def _attempt(self, run: str, active: _Active, stage: Stage) -> m.Ended:
        name = stage.box.name
        job = await self._job(run, active, stage)

        async def emit(body: Body) -> None:
            await self.journal.emit(run, name, body)

        with noticed(emit):
            identity = await self._cache.identity(job)
        key = None if identity is None else self._cache.key(job, identity)
        if key is not None and not active.spec.fresh and (hit := await self._hit(key)):
            active.brought[name] = Output(hit.output, hit.output_file, hit.files), None
            return m.Ended(name, "succeeded", hit.output, hit.output_file, hit.files, hit.source)

        async def moved(state: m.Progress) -> None:
            active.tell(m.Moved(name, state))

        began = math.inf

        async def admitted() -> None:
            nonlocal began
            began = anyio.current_time()
            if (seconds := stage.box.budget.seconds) is not None:
                clock.deadline = began + seconds - active.seconds.get(name, 0.0)

        try:
            with CancelScope() as clock:
                result = await self._executor.run(job, emit, moved, admitted)
                output = await active.outputs.made(result)
        finally:
            active.seconds[name] = active.seconds.get(name, 0.0) + max(0.0, anyio.current_time() - began)
        if clock.cancelled_caught:
            return m.Ended(name, "failed", trouble=verdicts.time_up(stage.box.budget, name))
        # Also of a run that would take no earlier result; not if the image was built anew while it waited or ran.
        same = key is not None and identity == await self._cache.identity(job)
        active.brought[name] = output, key if same else None
        return m.Ended(name, "succeeded", output.text, output.file, output.files)

    async def _hit(self, key: str) -> Hit | None:
        hit = await self._cache.find(key)
        if hit is None:
            return None
        files = [*hit.files.values(), *([hit.output_file] if hit.output_file else [])]
        return hit if all([await self.artifacts.has(file.digest) for file in files]) else None

    async def _file(self, active: _Active, digest: str) -> Path:
        if digest not in active.verified:
            active.verified[digest] = await self.artifacts.verified(digest)
        return active.verified[digest]

    async def _job(self, run: str, active: _Active, stage: Stage) -> StageJob:
        files = {
            **({} if stage.needs else active.spec.inputs),
            **stage.inputs,
            **active.outputs.files_of(stage.needs),
        }
        blobs = {file.digest for skill in stage.box.procedures for file in skill.files.values()}

        def metered(call: ModelCall) -> None:
            self.journal.post(run, stage.box.name, call)
            usd = None if call.is_unpriced else call.cost_usd or 0.0
            active.tell(m.Metered(stage.box.name, verdicts.Spent(usd, call.tokens.total)))

        return StageJob(
            run,
            stage,
            inputs={n: await self._file(active, f.digest) for n, f in files.items()},
            files=files,
            blobs={digest: await self._file(active, digest) for digest in blobs},
            traceparent=traceparent(run, stage.box.name, active.machine.attempts.get(stage.box.name, 1)),
            keep=self.artifacts.put,
            upstream=await active.outputs.of(stage.needs),
            metered=metered,
        )

    async def _give_up(self, run: str) -> None:
        """The driver itself failed (the store refuses to write, say): leave a terminal event if possible."""
        trouble = Trouble(kind="provider", message="The engine failed; the daemon's log says why.", cause="engine")
        posted = False
        with anyio.move_on_after(GIVE_UP_S, shield=True):
            while True:
                try:
                    await self.journal.flush(run)
                    if not posted:
                        record = await self.store.get_run(run)
                        posted = True
                        await end_abruptly(self.journal, record, trouble)
                    return
                except VoidboxError as e:
                    log.error("%s cannot be ended in the store yet: %s", run, e)
                    await anyio.sleep(0.5)


async def _flush_last(journal: Journal) -> None:
    try:
        await journal.flush()
    except VoidboxError as e:
        log.error("events were lost with the end of the daemon: %s", e)


async def _later(active: _Active, seconds: float, given: m.Input) -> None:
    await anyio.sleep(seconds)
    active.tell(given)
