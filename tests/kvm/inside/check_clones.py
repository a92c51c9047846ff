"""Clones under real KVM: the kernel's vsock plugged in after the restore, memory mapped from the template."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvm.inside.shared import BOOT_S, MEMORY_MB, SharedBox
from tests.kvm.inside.witness import qemu_of
from voidbox_lab.box import Box, Boxes

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

IDENTITY = """cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/hostname
head -c 16 /dev/urandom | od -An -tx1"""


async def identity(box: Box) -> list[str]:
    """What the guest knows of itself, and of chance."""
    done = await box.run(["sh", "-c", IDENTITY], timeout_s=120)
    assert done.exit_code == 0, done
    return done.stdout.decode().splitlines()


async def test_a_clone_shares_its_templates_memory(shared: SharedBox) -> None:
    """Copy-on-write: QEMU maps the loaded template privately, and no copy of it exists."""
    assert shared.box.facts.start == "clone", shared.box.facts.start_note
    qemu = qemu_of(shared.box.id)
    assert qemu is not None
    maps = Path(f"/proc/{qemu.pid}/maps").read_text(encoding="utf-8").splitlines()
    memory = [line.split() for line in maps if line.endswith("/memory")]
    assert memory, "the template's file is not mapped"
    assert {fields[1][3] for fields in memory} == {"p"}


async def test_clones_are_others(boxes: Boxes, shared: SharedBox, measured: list[str]) -> None:
    """Two clones of one template differ in all that must differ, and leave the template as it was."""
    recipe = await boxes.recipe(memory_mb=MEMORY_MB)
    resident = await boxes.templates.resident(recipe)
    async with await boxes.open(memory_mb=MEMORY_MB, timeout_s=BOOT_S) as other:
        assert other.facts.start == "clone", other.facts.start_note
        ours, theirs = await identity(shared.box), await identity(other)
        assert len(ours) == len(theirs) == 4
        assert not set(ours) & set(theirs)
        measured.append(f"clone: {other.facts.boot_s:.1f} s; phases {other.phases}")
    assert resident.intact
