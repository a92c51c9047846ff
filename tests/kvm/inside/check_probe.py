"""The accelerator probe, where KVM works."""

from __future__ import annotations

import pytest

from voidbox_lab.images import Image
from voidbox_lab.machines import Hypervisor, Verdict, probe_accelerator
from voidbox_lab.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.vm]


async def test_the_probe_answers_kvm_by_booting(verdict: Verdict) -> None:
    """Nobody chose, nothing was cached: the guest kernel came up under KVM."""
    assert verdict.accelerator == "kvm", verdict.reason
    assert not verdict.cached
    assert "boots" in verdict.reason
    # Even this kernel's first instructions take longer than that; a verdict without a boot would not.
    assert verdict.seconds > 0.5


async def test_the_verdict_is_cached(
    verdict: Verdict, settings: Settings, hypervisor: Hypervisor, image: Image
) -> None:
    """A second answer costs no boot and is the same."""
    again = await probe_accelerator(settings, hypervisor, image)
    assert again.cached
    assert (again.accelerator, again.seconds) == (verdict.accelerator, verdict.seconds)
