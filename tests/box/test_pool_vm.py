"""Many stages at once on real clones, admitted as the engine admits them."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from tests.machines.guests import qemus
from voidbox_lab.box import Boxes
from voidbox_lab.engine import Admission, Capacity
from voidbox_lab.engine.admission import BOX_OVERHEAD_MB
from voidbox_lab.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

SIZE_MB = 128


async def test_fifty_stages_with_memory_for_ten(boxes: Boxes) -> None:
    """Real clones: every stage is served, never more boxes than fit, spares count against their own limit."""
    settings = replace(Settings.from_env(), spares=2).prepare()
    places = (settings.runtime / "b", settings.shm / "b")
    before = {path for place in places for path in place.glob("*")}
    admission = Admission(Capacity(memory_mb=10 * (SIZE_MB + BOX_OVERHEAD_MB), vcpus=100))
    served: set[str] = set()
    most = most_up = 0
    async with Boxes(settings, boxes.hypervisor) as made:

        async def stage() -> None:
            nonlocal most, most_up
            async with admission.admitted(SIZE_MB, 1), await made.open(memory_mb=SIZE_MB) as box:
                most = max(most, made.running)
                most_up = max(most_up, made.running + len(made.pool))
                assert box.facts.start in {"clone", "spare"}, box.facts.start_note
                assert (await box.run(["true"])).exit_code == 0
                while most < 10:  # the first ones stay until the house is full
                    await anyio.sleep(0.02)
                    most = max(most, made.running)
                served.add(box.id)

        with anyio.fail_after(240):
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(stage)
        assert len(served) == made.booted == 50
        assert most == 10
        assert most_up <= 12
        assert (made.running, admission.boxes, admission.used_mb) == (0, 0, 0)
    assert {path for place in places for path in place.glob("*")} == before
    assert [box for box in served if qemus(box)] == []


SEEN = """ls -A /tmp /workspace /home/agent; cut -d' ' -f2 /proc/mounts
ls /sys/fs/cgroup/execs | grep -c ^x"""
"""Files, mounts, and how many commands have a cgroup: this one."""


async def test_a_spare_has_no_past(boxes: Boxes) -> None:
    """What it rehearsed left nothing that a command could find; a program it lacks is passed over."""
    settings = replace(Settings.from_env(), spares=1).prepare()
    async with Boxes(settings, boxes.hypervisor) as made:
        seen = []
        for start in ("clone", "spare"):
            with anyio.fail_after(60):
                while start == "spare" and not len(made.pool):
                    await anyio.sleep(0.05)
            async with await made.open(memory_mb=SIZE_MB) as box:
                assert box.facts.start == start
                done = await box.run(["sh", "-c", SEEN], cwd="/")
                seen.append(done.stdout.decode())
        assert seen[0].endswith("\n1\n"), seen[0]
        assert seen[0] == seen[1]
