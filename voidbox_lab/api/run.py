"""The Python API: `VoidBox` declares, `Run` is what became of it.

    box = VoidBox("analyst", prompt="…", skills=["skills/prices.md"], model="anthropic:claude-sonnet-4-5")
    run = box.run("stocks.csv")          # or: await box.arun("stocks.csv")
    run.result, run.stages["analyst"].output, run.to_frame()

A run that failed is a `Run` with ``state == "failed"`` and `trouble`, for a notebook wants to look at it;
`Run.check` raises. What could not even begin raises at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from voidbox_lab.client import AsyncClient, Client
from voidbox_lab.errors import Cancelled, UserError, VoidboxError, from_dict
from voidbox_lab.settings import Settings
from voidbox_lab.spec import (
    TERMINAL,
    Model,
    Policy,
    RunRecord,
    RunSpec,
    RunState,
    Skill,
    Stage,
    StageRecord,
    Trouble,
    VoidBoxSpec,
    validated,
)
from voidbox_lab.spec.events import Event

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
Source = str | Path | bytes
"""A file by its path, or its bytes."""
Inputs = Source | Sequence[str | Path] | Mapping[str, Source] | None
"""A path, paths, or file names with a path or bytes each."""
CANCEL_S = 5
"""How long an interrupted caller waits for the daemon to take the cancellation of its run."""


class VoidBox:
    """An agent bound to its skills, its model and a box of its own: one stage, ready to run.

    Args:
        name: the stage's name: a-z, 0-9, ``-`` and ``_``.
        prompt: what the agent is to do. It sees its inputs under ``/workspace/input``.
        skills: `Skill`s, or paths of SKILL.md files.
        model: ``PROVIDER:NAME`` (see `Model.parse`) or a `Model`.
        memory_mb: the box's memory, in MiB.
        timeout_s: bound on the agent, in seconds; boot is bounded apart.
        options: further fields of `VoidBoxSpec`: ``vcpus``, ``image``.

    Raises:
        UserError: a value out of range, an unknown option, a skill file that cannot be read.
    """

    def __init__(
        self,
        name: str,
        *,
        prompt: str,
        skills: Iterable[Skill | str | Path] = (),
        model: str | Model,
        memory_mb: int = 512,
        timeout_s: float = 300,
        agent: str = "lab-agent",
        policy: Policy | None = None,
        **options: Any,
    ) -> None:
        if isinstance(skills, str | Path | Skill):
            skills = [skills]
        self.spec = validated(
            VoidBoxSpec,
            name=name,
            prompt=prompt,
            skills=tuple(s if isinstance(s, Skill) else Skill.file(s) for s in skills),
            model=Model.parse(model) if isinstance(model, str) else model,
            memory_mb=memory_mb,
            timeout_s=timeout_s,
            agent=agent,
            policy=policy or Policy(),
            **options,
        )

    def __repr__(self) -> str:
        skills = ", ".join(s.name for s in self.spec.skills) or "none"
        return f"<VoidBox {self.spec.name} · {self.spec.model} · skills: {skills} · {self.spec.memory_mb} MiB>"

    def run(self, inputs: Inputs = None, *, settings: Settings | None = None) -> Run:
        """Run to the end, blocking; works inside a running event loop too.

        Args:
            inputs: files for ``/workspace/input``.

        Raises:
            UserError: an input that cannot be read, an unknown agent or model, no key for the model.
            Cancelled: Ctrl-C; the run was cancelled first.
            ProviderError: the daemon did not start or was lost.
        """
        return _blocking(lambda: self.arun(inputs, settings=settings))

    async def arun(self, inputs: Inputs = None, *, settings: Settings | None = None) -> Run:
        """As `run`, for async callers. Cancelling the awaiting task cancels the run."""
        files = named(inputs)
        async with AsyncClient(settings) as client:
            uploaded = {name: await client.upload(source) for name, source in files.items()}
            spec = validated(RunSpec, stages=(Stage(box=self.spec),), inputs=uploaded)
            record = await submitted(client, spec)
            try:
                async for _ in client.events(record.id):
                    pass
            except asyncio.CancelledError:
                with suppress(
                    VoidboxError, TimeoutError
                ):  # the daemon is gone, and with it the run; or it is slow
                    await persistently(client.cancel(record.id), CANCEL_S)
                raise
            return Run(await client.run(record.id), settings=settings)


class Run:
    """A run: its record as last seen, and a way to its events. Made by `VoidBox.run` and ``%voidbox run``."""

    def __init__(self, record: RunRecord, *, settings: Settings | None = None) -> None:
        self._record = record
        self._settings = settings
        self._events: list[Event] | None = None

    @classmethod
    def load(cls, run_id: str, *, settings: Settings | None = None) -> Run:
        """An earlier run, by its id. `UserError` if there is none."""
        with Client(settings) as client:
            return cls(client.run(run_id), settings=settings)

    @property
    def record(self) -> RunRecord:
        """The whole record."""
        return self._record

    @property
    def id(self) -> str:
        """The run's id."""
        return self._record.id

    @property
    def state(self) -> RunState:
        """``succeeded``, ``failed``, ``cancelled``, or while it goes on ``queued`` or ``running``."""
        return self._record.state

    @property
    def spec(self) -> RunSpec:
        """Exactly what ran."""
        return self._record.spec

    @property
    def stages(self) -> Mapping[str, StageRecord]:
        """Each stage's record, by name."""
        return self._record.stages

    @property
    def result(self) -> str | None:
        """The answer of the last stage that succeeded."""
        return self._record.result

    @property
    def trouble(self) -> Trouble | None:
        """Why it did not succeed."""
        return self._record.trouble

    @property
    def cost_usd(self) -> float | None:
        """Dollars of all stages; None if any of them made a call that has no known price."""
        return self._record.cost_usd

    def check(self) -> Run:
        """Self if the run succeeded, else its trouble raised as the error it is."""
        if self.state == "succeeded":
            return self
        if self.trouble is not None:
            raise from_dict(self.trouble.model_dump())
        if self.state == "cancelled":
            raise Cancelled(f"The run {self.id} was cancelled.", cause="cancelled")
        raise UserError(f"The run {self.id} has not succeeded; it is {self.state}. Refresh it once it has ended.")

    def refresh(self) -> Run:
        """Ask the daemon for the record again."""
        with Client(self._settings) as client:
            self._record = client.run(self.id)
        return self

    def cancel(self) -> Run:
        """Ask for the run's end; harmless if it has ended."""
        with Client(self._settings) as client:
            self._record = client.cancel(self.id)
        return self

    def events(self) -> list[Event]:
        """All events of the run; waits for its end if it goes on."""
        if self._events is None:
            with Client(self._settings) as client:
                self._events = list(client.events(self.id))
                if self.state not in TERMINAL:
                    self._record = client.run(self.id)
        return self._events

    def to_frame(self) -> pd.DataFrame:
        """One row for each stage; see `voidbox_lab.observe.frames.stages_frame`."""
        from voidbox_lab.observe.frames import stages_frame

        return stages_frame(self._record)

    def events_frame(self) -> pd.DataFrame:
        """One row for each event; see `voidbox_lab.observe.frames.events_frame`."""
        from voidbox_lab.observe.frames import events_frame

        return events_frame(self.events())

    def telemetry_frame(self) -> pd.DataFrame:
        """One row for each sample of the guests' procfs."""
        from voidbox_lab.observe.frames import telemetry_frame

        return telemetry_frame(self.events())

    def __repr__(self) -> str:
        stages = ", ".join(f"{s.name}: {s.state}" for s in self.stages.values())
        cost = "unpriced" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        trouble = f" · {self.trouble.kind}: {self.trouble.message}" if self.trouble else ""
        # A guest wrote the trouble's text, perhaps: no control codes into a terminal.
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in trouble)
        return f"<Run {self.id} · {self.state} · {stages} · {cost}{shown}>"


def named(inputs: Inputs) -> dict[str, Path | bytes]:
    """File names in the box and where their bytes come from.

    Raises:
        UserError: bytes without a name, a directory, a missing file, two files of one name.
    """
    if inputs is None:
        return {}
    if isinstance(inputs, bytes):
        raise UserError('Bytes need a file name; pass them as {"name.csv": data}.')
    if isinstance(inputs, Mapping):
        return {name: s if isinstance(s, bytes) else _file(s) for name, s in inputs.items()}
    found: dict[str, Path | bytes] = {}
    for path in [inputs] if isinstance(inputs, str | Path) else inputs:
        file = _file(path)
        if file.name in found:
            raise UserError(f"Two inputs are named {file.name!r}; rename one, they share a directory in the box.")
        found[file.name] = file
    return found


def _file(path: str | Path) -> Path:
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"The input {str(path)!r} is a directory; name its files one by one.")
    if not file.is_file():
        raise UserError(f"There is no input file {str(path)!r} (looked in {Path.cwd()}); check the path.")
    return file


async def submitted(client: AsyncClient, spec: RunSpec) -> RunRecord:
    """Begin a run whose inputs were uploaded. Cancelled meanwhile, it takes along a run that the daemon began."""
    answer = asyncio.ensure_future(client.submit(spec))

    async def taken_back() -> None:
        await client.cancel((await answer).id)

    try:
        await asyncio.wait([answer])
    except asyncio.CancelledError:
        with suppress(VoidboxError, TimeoutError):
            await persistently(taken_back(), CANCEL_S)
        raise
    return answer.result()


async def persistently(work: Coroutine[Any, Any, T], within_s: float) -> T:
    """Do what must be done although this task is being cancelled, and may be again: that is not heeded.

    Raises:
        TimeoutError: `work` took longer than `within_s` and was cancelled.
    """

    async def bounded() -> T:
        async with asyncio.timeout(within_s):
            return await work

    task = asyncio.ensure_future(bounded())
    with anyio.CancelScope(
        shield=True
    ):  # anyio's cancellation keeps coming, asyncio's comes once for each request
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
    return task.result()


def _blocking(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end from sync code: on a loop of its own thread if this thread runs one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _interruptible(start)
    outcome: list[T] = []
    failure: list[BaseException] = []
    running = threading.Event()
    box: dict[str, Any] = {}

    async def main() -> T:
        box["task"], box["loop"] = asyncio.current_task(), asyncio.get_running_loop()
        running.set()
        return await start()

    def work() -> None:
        try:
            outcome.append(asyncio.run(main()))
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=work, name="voidbox-run", daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        if running.wait(1):
            box["loop"].call_soon_threadsafe(box["task"].cancel)
        thread.join(15)
        raise Cancelled("The run was cancelled by an interrupt.", cause="interrupted") from None
    if failure:
        raise failure[0]
    return outcome[0]


def _interruptible(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return asyncio.run(start())
    except KeyboardInterrupt:
        # asyncio.run has cancelled the task, which cancelled the run.
        raise Cancelled("The run was cancelled by an interrupt.", cause="interrupted") from None
