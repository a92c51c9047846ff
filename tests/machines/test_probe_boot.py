"""The accelerator probe with the real QEMU and the real kernel, on whatever machine this is."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from voidbox_lab.images import Image
from voidbox_lab.machines import Hypervisor, probe_accelerator
from voidbox_lab.machines.probe import PATIENCE, PROBE_TIMEOUT_S
from voidbox_lab.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.vm]


def probes() -> list[str]:
    """Processes of a probe that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if b"voidbox.probe=1" in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


async def test_an_answer_within_the_bound(
    settings: Settings, hypervisor: Hypervisor, image: Image, tmp_path: Path
) -> None:
    """KVM if the kernel came up, else emulation with the reason; then from the cache; no QEMU stays."""
    fresh = replace(settings, cache=tmp_path, accel="auto")
    began = time.monotonic()
    verdict = await probe_accelerator(fresh, hypervisor, image)
    assert time.monotonic() - began < PROBE_TIMEOUT_S * PATIENCE + 10
    assert verdict.reason
    if verdict.accelerator == "kvm":
        assert "boots under KVM" in verdict.reason
    else:
        assert "/dev/kvm" in verdict.reason
    assert probes() == []
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        began = time.monotonic()
        again = await probe_accelerator(fresh, hypervisor, image)
        assert time.monotonic() - began < 2
        assert again == replace(verdict, cached=True)
