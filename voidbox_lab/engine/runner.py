"""Drives runs: carries out what the state machine commands and tells it what happened.

One `Runner` per daemon, with one task group for all runs. Not for how a stage works (`stage`), nor for
what may happen when (`machine`).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from voidbox_lab.box.trouble import first_error
from voidbox_lab.engine import machine as m
from voidbox_lab.engine.admission import Admission, Waiting
from voidbox_lab.engine.journal import Journal
from voidbox_lab.engine.stage import Host, StageJob, run_stage
from voidbox_lab.errors import Cancelled, LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.spec import TERMINAL, RunRecord, RunSpec, StageRecord, Trouble
from voidbox_lab.spec.events import Body, Notice, RunChanged, StageChanged
from voidbox_lab.store import Artifacts, Store

MAX_RUNS = 64
"""Most runs in progress at once."""
GIVE_UP_S = 10.0
"""How long a run whose driver failed tries to leave a terminal event; the next start does it otherwise."""

log = logging.getLogger(__name__)


@dataclass
class _Active:
    """A run in progress."""

    spec: RunSpec
    machine: m.Machine
    inbox: MemoryObjectSendStream[m.Input]
    done: anyio.Event = field(default_factory=anyio.Event)
    scopes: dict[str, CancelScope] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)


class Runner:
    """Submits, drives and cancels runs. Use as ``async with Runner.serving(…) as runner``."""

    def __init__(
        self, store: Store, artifacts: Artifacts, journal: Journal, host: Host, admission: Admission
    ) -> None:
        self.store, self.artifacts, self.journal, self.admission = store, artifacts, journal, admission
        self._host = host
        self._tasks: TaskGroup | None = None
        self._active: dict[str, _Active] = {}
        self._closing = False

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, store: Store, artifacts: Artifacts, journal: Journal, host: Host, admission: Admission
    ) -> AsyncIterator[Runner]:
        """A runner with its journal served; on exit, whatever still runs is cancelled and its boxes closed."""
        self = cls(store, artifacts, journal, host, admission)
        async with AsyncExitStack() as stack:
            writers = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(writers.cancel_scope.cancel)
            writers.start_soon(journal.serve)
            stack.push_async_callback(journal.flush)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._tasks.cancel_scope.cancel)
            yield self

    @property
    def active(self) -> tuple[str, ...]:
        """Runs in progress."""
        return tuple(self._active)

    async def submit(self, spec: RunSpec) -> RunRecord:
        """Check, record and begin a run.

        Raises:
            UserError: an unknown agent, an input that was not uploaded, more memory than the host can give.
            LimitExceeded: too many runs at once.
        """
        if self._closing or self._tasks is None:
            raise ProviderError("The daemon is shutting down; try again in a moment.", cause="shutdown")
        if len(self._active) >= MAX_RUNS:
            raise LimitExceeded(
                f"{MAX_RUNS} runs are in progress; wait for one to end or cancel one.",
                limit="runs",
                value=MAX_RUNS,
            )
        for stage in spec.stages:
            self._host.adapter(stage.box.agent)
            self.admission.check(f"Stage {stage.box.name!r}", stage.box.memory_mb)
        for name, file in spec.inputs.items():
            if not await self.artifacts.has(file.digest):
                raise UserError(f"The input {name!r} ({file.digest}) was not uploaded; upload it first.")
        run = f"run-{secrets.token_hex(6)}"
        record = await self.store.create_run(run, spec, at=time.time())
        # Every stage sends at most a handful of inputs, so this never fills up.
        send, receive = anyio.create_memory_object_stream[m.Input](16 + 16 * len(spec.stages))
        active = _Active(spec, m.Machine.of(spec), send)
        self._active[run] = active
        self._tasks.start_soon(self._drive, run, active, receive, name=run)
        return record

    async def cancel(self, run: str, *, why: str = "It was cancelled by the user.") -> RunRecord:
        """Ask a run to end; returns at once. A run that has ended already stays as it is."""
        if active := self._active.get(run):
            with suppress(anyio.BrokenResourceError):  # it ended this very moment
                await active.inbox.send(m.Cancel(Trouble(kind="cancelled", message=why, cause="cancelled")))
        return await self.store.get_run(run)

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

    async def _drive(self, run: str, active: _Active, inbox: MemoryObjectReceiveStream[m.Input]) -> None:
        """One run, from `Begin` to its terminal event."""
        try:
            async with anyio.create_task_group() as stages:
                await self._step(run, active, m.Begin(), stages)
                while not active.machine.over:
                    await self._step(run, active, await inbox.receive(), stages)
        except Exception:
            log.exception("driving %s failed", run)
            await self._give_up(run)
        finally:
            inbox.close()
            self._active.pop(run, None)
            active.done.set()

    async def _step(self, run: str, active: _Active, given: m.Input, stages: TaskGroup) -> None:
        active.machine, commands = m.step(active.machine, given)
        for command in commands:
            match command:
                case m.Record(stage, body):
                    await self.journal.record(run, stage, body)
                case m.Launch(stage):
                    stages.start_soon(self._stage, run, active, stage, name=f"{run}/{stage}")
                case m.Interrupt(stage):
                    if scope := active.scopes.get(stage):
                        scope.cancel()  # a stage that has no scope yet looks at machine.cancel first

    async def _stage(self, run: str, active: _Active, name: str) -> None:
        """One stage; sends exactly one `Ended`, whatever happens."""

        async def emit(body: Body) -> None:
            await self.journal.emit(run, name, body)

        async def moved(state: m.Progress) -> None:
            await active.inbox.send(m.Moved(name, state))

        async def waits(waiting: Waiting) -> None:
            await emit(Notice(message=f"Waiting for room: {waiting}."))

        ended = m.Ended(
            name, "cancelled", trouble=_trouble(Cancelled("The stage was cancelled.", cause="cancelled"))
        )
        try:
            with CancelScope() as scope:
                active.scopes[name] = scope
                if active.machine.cancel is not None:
                    scope.cancel()  # cancelled between its launch and this line
                box = next(s.box for s in active.spec.stages if s.box.name == name)
                room = self.admission.admitted(box.memory_mb, box.vcpus, what=f"Stage {name!r}", tell=waits)
                async with room:
                    job = await self._job(run, active, name)
                    output = await run_stage(job, self._host, emit, moved)
                active.outputs[name] = output
                ended = m.Ended(name, "succeeded", output=output)
        except Exception as e:
            ended = m.Ended(name, "failed", trouble=_trouble(e))
        finally:
            with suppress(anyio.BrokenResourceError), anyio.move_on_after(5, shield=True):
                await active.inbox.send(ended)

    async def _job(self, run: str, active: _Active, name: str) -> StageJob:
        stage = next(s for s in active.spec.stages if s.box.name == name)
        inputs: Mapping[str, Path] = {}
        if not stage.needs:
            inputs = {n: await self.artifacts.verified(f.digest) for n, f in active.spec.inputs.items()}
        return StageJob(run, stage, inputs, {need: active.outputs[need] for need in stage.needs})

    async def _give_up(self, run: str) -> None:
        """The driver itself failed (the store refuses to write, say): leave a terminal event if possible."""
        trouble = Trouble(kind="provider", message="The engine failed; the daemon's log says why.", cause="engine")
        posted = False
        with anyio.move_on_after(GIVE_UP_S, shield=True):
            while True:
                try:
                    await self.journal.flush()
                    if not posted:
                        record = await self.store.get_run(run)
                        posted = True
                        await end_abruptly(self.journal, record, trouble)
                    return
                except VoidboxError as e:
                    log.error("%s cannot be ended in the store yet: %s", run, e)
                    await anyio.sleep(0.5)


async def end_abruptly(journal: Journal, record: RunRecord, trouble: Trouble) -> None:
    """End a run whose driver is gone: stages that were going on fail with `trouble`, waiting ones are skipped."""
    for stage in record.stages.values():
        if stage.state in TERMINAL:
            continue
        state = StageChanged(state="skipped" if _waited(stage) else "failed", trouble=trouble)
        await journal.emit(record.id, stage.name, state)
    await journal.record(record.id, None, RunChanged(state="failed", trouble=trouble))


def _waited(stage: StageRecord) -> bool:
    return stage.state == "queued"


def _trouble(error: Exception) -> Trouble:
    """One of the five kinds from whatever a stage raised; faults of our own are logged with their traceback."""
    found: BaseException = first_error(error) if isinstance(error, BaseExceptionGroup) else error
    if isinstance(found, VoidboxError):
        return Trouble.from_error(found.to_dict())
    log.error("a stage failed unexpectedly", exc_info=found)
    what = f"{type(found).__name__}: {found}"[:300]
    return Trouble(
        kind="provider", message=f"The stage failed unexpectedly ({what}); please report it.", cause="internal"
    )
