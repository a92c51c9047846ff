"""``python -m tests.browser.panel_daemon``: a daemon without VMs, whose boxes are busy and whose models cost."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from tests.daemon.doubles import FakeBackend
from tests.engine.doubles import SAMPLE, FakeBox, FakeExit, FakeSession, says
from voidbox_lab.box.bundles import Packed
from voidbox_lab.daemon.serve import main
from voidbox_lab.engine import StageJob
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Tokens
from voidbox_lab.spec.events import ModelCall, Telemetry

CALL = ModelCall(
    request="r", model="m", source="live", status=200, tokens=Tokens(input=900, output=100), cost_usd=0.0123,
    duration_s=0.1,
)  # fmt: skip
DECEIVING = "\u202ecod.exe\u2066\x7f"
"""A name that is shown as another, unless what turns it round is left out."""


async def busy(interval_s: float = 1.0) -> AsyncIterator[Telemetry]:
    """Telemetry that goes up and down."""
    start = time.monotonic()
    while True:
        wave = math.sin((time.monotonic() - start) * 1.5)
        used = int(SAMPLE.memory_total_kb * (0.45 + 0.1 * wave))
        yield SAMPLE.model_copy(update={"cpu": 0.5 + 0.4 * wave, "memory_used_kb": used})
        await anyio.sleep(interval_s / 5)


class PanelBackend(FakeBackend):
    """Every stage calls a model once, for a little more than a cent."""

    def __init__(self, tasks: Any) -> None:
        super().__init__(tasks)
        self.session = self._metered
        self.leaves["hostile"] = [Packed("file", DECEIVING, False, b"", True)]

    def play(self, name: str) -> Sequence[tuple[str, Any]]:
        if name.startswith("hostile"):
            text = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
            return says(text + DECEIVING, result=text + DECEIVING)
        if name.startswith("broken"):
            return [("exit", FakeExit(code=3))]
        return super().play(name)

    async def open(self, *, memory_mb: int, **options: Any) -> FakeBox:
        box = await super().open(memory_mb=memory_mb, **options)
        box.telemetry = busy  # type: ignore[method-assign]
        return box

    @asynccontextmanager
    async def _metered(self, job: StageJob) -> AsyncIterator[FakeSession]:
        job.metered(CALL)
        async with self.sessions(job) as session:
            yield session


@asynccontextmanager
async def panel_backend(settings: Settings) -> AsyncIterator[PanelBackend]:
    async with anyio.create_task_group() as tasks:
        yield PanelBackend(tasks)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    sys.exit(main(panel_backend))
