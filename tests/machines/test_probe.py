"""The accelerator: chosen by a boot that is real, bounded and leaves nothing."""

from __future__ import annotations

import os
import re
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from voidbox_lab.errors import Unavailable
from voidbox_lab.machines import probe_accelerator
from voidbox_lab.machines.probe import FAILURE_LIFETIME_S, Verdict
from voidbox_lab.settings import Settings

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class FakeImage:
    """Files a fake QEMU never reads."""

    kernel: Path
    initrd: Path


@dataclass(frozen=True)
class FakeQemu:
    """A shell script in QEMU's place; counts its runs and leaves its process id."""

    emulator: Path
    qemu_version: str = "1.2.3"

    @property
    def runs(self) -> int:
        """How often it was started."""
        log = self.emulator.with_suffix(".runs")
        return len(log.read_text().splitlines()) if log.exists() else 0

    def alive(self) -> list[int]:
        """Its processes that still run."""
        log = self.emulator.with_suffix(".runs")
        pids = [int(line) for line in log.read_text().splitlines()]
        return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and not _zombie(pid)]


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A cache of the test's own."""
    return Settings(cache=tmp_path / "cache", data=tmp_path, runtime=tmp_path, shm=tmp_path / "shm")


@pytest.fixture
def image(tmp_path: Path) -> FakeImage:
    """Not a kernel."""
    (tmp_path / "kernel").write_bytes(b"kernel")
    return FakeImage(tmp_path / "kernel", tmp_path / "initrd")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device that opens."""
    (tmp_path / "kvm").touch()
    return tmp_path / "kvm"


def fake(tmp_path: Path, script: str) -> FakeQemu:
    """A QEMU that does `script`."""
    path = tmp_path / "qemu-fake"
    path.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/qemu-fake.runs\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return FakeQemu(path)


BOOTS = "echo '[ 0.0] Linux version 6.1'; echo 'voidbox-init: FAILED for want of disks'; sleep 1000"
HANGS = "echo SeaBIOS; sleep 1000"
SLOW = "echo '[ 0.0] Linux version 6.1'; sleep 0.8; echo 'voidbox-init: up'; sleep 1000"
STALLS = "echo '[ 0.0] Linux version 6.1'; sleep 1000"
ABORTS = "echo 'error: failed to set MSR 0x10a to 0x0' >&2; exit 1"
FLOODS = "exec yes flooding"


@pytest.mark.parametrize(
    ("script", "accelerator", "says"),
    [
        (BOOTS, "kvm", "boots under KVM"),
        (SLOW, "kvm", "boots under KVM"),
        (HANGS, "tcg", r"within 0\.4 s"),
        (STALLS, "tcg", r"within 1\.6 s"),
        (ABORTS, "tcg", "failed to set MSR 0x10a"),
        (FLOODS, "tcg", r"within 0\.4 s"),
    ],
    ids=["boots", "slow", "hangs", "stalls", "aborts", "floods"],
)
async def test_verdicts(
    tmp_path: Path, settings: Settings, image: FakeImage, device: Path, script: str, accelerator: str, says: str
) -> None:
    """By what the guest says within the bound; no process stays; the second answer comes from the cache."""
    qemu = fake(tmp_path, script)
    began = time.monotonic()
    verdict = await probe_accelerator(settings, qemu, image, timeout_s=0.4, device=device)
    assert time.monotonic() - began < 4
    assert verdict.accelerator == accelerator
    assert re.search(says, verdict.reason), verdict.reason
    assert qemu.alive() == []
    again = await probe_accelerator(settings, qemu, image, timeout_s=0.4, device=device)
    assert again == replace(verdict, cached=True)
    assert qemu.runs == 1


async def test_another_kernel_or_qemu_is_another_question(
    tmp_path: Path, settings: Settings, image: FakeImage, device: Path
) -> None:
    """The cache is keyed by what could change the answer."""
    qemu = fake(tmp_path, BOOTS)
    await probe_accelerator(settings, qemu, image, device=device)
    await probe_accelerator(settings, replace(qemu, qemu_version="1.2.4"), image, device=device)
    assert qemu.runs == 2
    image.kernel.write_bytes(b"another kernel")
    await probe_accelerator(settings, qemu, image, device=device)
    assert qemu.runs == 3


async def test_a_failure_expires(tmp_path: Path, settings: Settings, image: FakeImage, device: Path) -> None:
    """It may have been a busy minute. A success stays."""
    for script, runs in ((ABORTS, 2), (BOOTS, 1)):
        qemu = fake(tmp_path, script)
        qemu.emulator.with_suffix(".runs").unlink(missing_ok=True)
        image.kernel.write_text(script)
        await probe_accelerator(settings, qemu, image, device=device)
        for path in (settings.cache / "probe").glob("*.json"):
            os.utime(path, (time.time() - FAILURE_LIFETIME_S - 60,) * 2)
        await probe_accelerator(settings, qemu, image, device=device)
        assert qemu.runs == runs


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"accelerator": "xen", "reason": "", "seconds": 1}', "\0"])
async def test_a_damaged_cache_is_no_verdict(
    tmp_path: Path, settings: Settings, image: FakeImage, device: Path, text: str
) -> None:
    """Then the probe runs again, and mends it."""
    qemu = fake(tmp_path, BOOTS)
    await probe_accelerator(settings, qemu, image, device=device)
    (path,) = (settings.cache / "probe").glob("*.json")
    path.write_text(text)
    assert not (await probe_accelerator(settings, qemu, image, device=device)).cached
    assert (await probe_accelerator(settings, qemu, image, device=device)).cached
    assert qemu.runs == 2


async def test_no_device(tmp_path: Path, settings: Settings, image: FakeImage) -> None:
    """Nothing is started and nothing is cached: the answer is as quick as the question."""
    qemu = fake(tmp_path, BOOTS)
    missing = tmp_path / "no-such-device"
    verdict = await probe_accelerator(settings, qemu, image, device=missing)
    assert verdict == Verdict("tcg", f"there is no {missing}", 0.0)
    assert qemu.runs == 0


async def test_the_users_word(tmp_path: Path, settings: Settings, image: FakeImage, device: Path) -> None:
    """Forced is not probed; forcing what is not there is an error with its fix."""
    qemu = fake(tmp_path, ABORTS)
    assert (
        await probe_accelerator(replace(settings, accel="tcg"), qemu, image, device=device)
    ).accelerator == "tcg"
    forced = replace(settings, accel="kvm")
    assert (await probe_accelerator(forced, qemu, image, device=device)).accelerator == "kvm"
    with pytest.raises(Unavailable, match=r"VOIDBOX_ACCEL=kvm, but there is no .*unset"):
        await probe_accelerator(forced, qemu, image, device=tmp_path / "none")
    assert qemu.runs == 0
