"""Fixtures of the checks: one hypervisor, one verdict and one box for all of them, as in a daemon.

A skip here is a failure: the lane exists to show that nothing is missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from dataclasses import replace

import pytest

from tests.kvm.inside.shared import BOOT_S, MEMORY_MB, PROBE_S, SharedBox
from tests.kvm.inside.witness import cid_of
from voidbox_lab import images
from voidbox_lab.box import Boxes
from voidbox_lab.machines import Hypervisor, Verdict, probe_accelerator
from voidbox_lab.settings import Settings

_measured = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Room for what is measured."""
    config.stash[_measured] = []


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> list[str]:
    """Lines for the summary: figures of a doubly emulated box, which tell a slow machine from a slow product."""
    return pytestconfig.stash[_measured]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show them."""
    for line in config.stash[_measured]:
        terminalreporter.write_line(line)


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
async def verdict(settings: Settings, hypervisor: Hypervisor, image: images.Image, measured: list[str]) -> Verdict:
    """The probe's answer, found by a boot."""
    found = await probe_accelerator(settings, hypervisor, image, timeout_s=PROBE_S)
    measured.append(f"probe: {found.accelerator} after {found.seconds:.1f} s, {found.reason}")
    return found


@pytest.fixture(scope="session")
async def boxes(settings: Settings, hypervisor: Hypervisor, verdict: Verdict) -> AsyncIterator[Boxes]:
    """The product's factory. The verdict comes first, so that the probe's check sees an uncached one."""
    # Under emulation within emulation each box would take its whole bound to fail.
    assert verdict.accelerator == "kvm", verdict.reason
    # No spares: a check counts what is there.
    async with Boxes(replace(settings, spares=0), hypervisor) as made:
        yield made


@pytest.fixture(scope="session")
async def shared(boxes: Boxes, hypervisor: Hypervisor, measured: list[str]) -> AsyncIterator[SharedBox]:
    """A box opened as any stage opens its own."""
    async with await boxes.open(memory_mb=MEMORY_MB, timeout_s=BOOT_S) as box:
        cid = await cid_of(hypervisor, box.id)
        measured += [
            f"box: {box.facts.boot_s:.1f} s to the handshake; phases {box.phases}",
            f"box: an empty request {await box.ping() * 1000:.0f} ms there and back",
        ]
        yield SharedBox(box, cid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure that keeps its reason."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in the KVM lane: {report.longrepr}"
    return report
