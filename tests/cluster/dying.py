"""``python -m tests.cluster.dying SCHEDULER ROOT STAGE``: a runner that is there to be killed."""

import sys
from pathlib import Path

import anyio

from tests.cluster.farm import open_house
from tests.engine.lab import box
from voidbox_lab.spec import RunSpec, Stage


async def live(scheduler: str, root: Path, stage: str) -> None:
    """Run the stage, on whoever has 32 GiB."""
    async with open_house(root, scheduler) as house:
        await house.workers(3)
        await house.run(RunSpec(stages=(Stage(box=box(stage, memory_mb=32_768)),)), 60)


if __name__ == "__main__":
    anyio.run(live, sys.argv[1], Path(sys.argv[2]), sys.argv[3])
