"""Fixtures of the checks: one event loop, one hypervisor, one verdict for all of them, as in a daemon.

A skip here is a failure: the lane exists to show that nothing is missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from voidbox_lab import images
from voidbox_lab.machines import Hypervisor, Verdict, probe_accelerator
from voidbox_lab.settings import Settings


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Session-wide, so that fixtures of that scope share one event loop."""
    return "asyncio"


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Nothing chosen by hand: accelerator and vsock must be found out."""
    found = Settings.from_env().prepare()
    assert (found.accel, found.vsock) == ("auto", "auto")
    return found


@pytest.fixture(scope="session")
def image(settings: Settings) -> images.Image:
    """The guest image that came with the disk."""
    return images.resolve(settings)


@pytest.fixture(scope="session")
async def hypervisor(settings: Settings, anyio_backend: str) -> AsyncIterator[Hypervisor]:
    """libvirt's embedded driver, as for any root without a daemon."""
    opened = await Hypervisor.open(settings)
    yield opened
    await opened.aclose()


@pytest.fixture(scope="session")
async def verdict(settings: Settings, hypervisor: Hypervisor, image: images.Image) -> Verdict:
    """The probe's answer, found by a boot."""
    return await probe_accelerator(settings, hypervisor, image)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn a skip into a failure that keeps its reason."""
    report: Any = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in the KVM lane: {report.longrepr}"
    return report
