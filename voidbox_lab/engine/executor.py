"""Where a stage runs: the contract, and this host's own way. Not for when: that is the state machine's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from voidbox_lab.engine.admission import Admission, Waiting
from voidbox_lab.engine.job import Emit, Host, Moved, Result, StageJob
from voidbox_lab.engine.ports import Box
from voidbox_lab.engine.stage import run_stage
from voidbox_lab.spec import Stage
from voidbox_lab.spec.events import Queued

Admitted = Callable[[], Awaitable[None]]
"""Told when a stage has its room, from when on its time counts."""


class Executor(Protocol):
    """Runs stages. `local` does it here; `voidbox_lab.cluster` on other hosts."""

    def check(self, stage: Stage) -> None:
        """`UserError` for a stage that can never run here: an unknown agent, more memory than there is."""
        ...

    async def run(self, job: StageJob, emit: Emit, moved: Moved, admitted: Admitted) -> Result:
        """Wait for room, run `job` to its end and return what it brought; its box is closed by then in any case.

        Events go to `emit` in their order. Whoever loses a stage with its machine raises `ProviderError`.
        """
        ...

    def hold(self, run: str, held: bool) -> None:
        """Keep the stages of `run` that wait for room waiting, or let them go on."""
        ...

    def box(self, run: str, stage: str) -> Box | None:
        """The box in which a stage is at work now, if it is in this process."""
        ...


class LocalExecutor:
    """Stages in boxes of this host, as many as have room."""

    def __init__(self, host: Host, admission: Admission) -> None:
        self._host, self._admission = host, admission
        self._boxes: dict[tuple[str, str], Box] = {}

    def check(self, stage: Stage) -> None:
        """See `Executor`."""
        self._host.adapter(stage.box.adapter)
        self._admission.check(f"Stage {stage.box.name!r}", stage.box.memory_mb)

    async def run(self, job: StageJob, emit: Emit, moved: Moved, admitted: Admitted) -> Result:
        """See `Executor`."""
        box, place = job.box, (job.run, job.box.name)

        async def waits(waiting: Waiting) -> None:
            await emit(Queued(ahead=waiting.ahead, message=str(waiting)))

        what = f"Stage {box.name!r}"
        async with self._admission.admitted(box.memory_mb, box.vcpus, what=what, run=job.run, tell=waits):
            await admitted()
            try:
                return await run_stage(job, self._host, emit, moved, lambda box: self._boxes.update({place: box}))
            finally:
                self._boxes.pop(place, None)

    def hold(self, run: str, held: bool) -> None:
        """See `Executor`."""
        self._admission.hold(run, held)

    def box(self, run: str, stage: str) -> Box | None:
        """See `Executor`."""
        return self._boxes.get((run, stage))
