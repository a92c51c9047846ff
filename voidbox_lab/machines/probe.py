"""Finds out whether KVM really runs our guest kernel, by booting it. Not for whether ``/dev/kvm`` exists.

A nested or paravirtual KVM opens, creates a vCPU, and hangs in the kernel's first instructions. So: the very
QEMU, machine, CPU model, kernel and initramfs of a box, without disks; success is a line from the initramfs.
Bare QEMU and not libvirt, since a hang must end in a plain kill, and ``timeout`` from coreutils keeps the bound
even when this process dies meanwhile.

The verdict is cached by host kernel, QEMU, processor and guest kernel; a failure expires, for it may have been a
busy minute.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import anyio
from anyio.to_thread import run_sync

from voidbox_lab.errors import Unavailable
from voidbox_lab.machines.spec import Accelerator
from voidbox_lab.settings import Settings

PROBE_TIMEOUT_S = 20.0
"""A boot under KVM takes under 2 s."""
PATIENCE = 4.0
"""The bound is stretched by this once the kernel has said its first line: then KVM works and is merely slow."""
FAILURE_LIFETIME_S = 7 * 24 * 3600.0
ALIVE = b"Linux version"
UP = b"voidbox-init:"
"""What the initramfs prints, whatever it then makes of a machine without disks."""
OUTPUT_CAP = 256 << 10
DEVICE = Path("/dev/kvm")

# Few lines: each costs milliseconds on an emulated serial port, seconds under nested emulation. Level 6 shows
# notices, the kernel's first line among them.
CMDLINE = "console=ttyS0 loglevel=6 panic=-1 voidbox.probe=1"


class Bootable(Protocol):
    """The part of an image a probe needs."""

    @property
    def kernel(self) -> Path: ...
    @property
    def initrd(self) -> Path: ...


class Emulated(Protocol):
    """The part of a hypervisor a probe needs."""

    @property
    def emulator(self) -> Path: ...
    @property
    def qemu_version(self) -> str: ...


@dataclass(frozen=True)
class Verdict:
    """Which accelerator boxes get, and why in one clause."""

    accelerator: Accelerator
    reason: str
    seconds: float
    """What the probe took; of the original probe where the verdict was cached."""
    cached: bool = False


async def probe_accelerator(
    settings: Settings,
    hypervisor: Emulated,
    image: Bootable,
    *,
    timeout_s: float = PROBE_TIMEOUT_S,
    device: Path = DEVICE,
) -> Verdict:
    """The accelerator for boxes of `image`.

    Args:
        timeout_s: seconds for the boot to reach the initramfs; four times that once the kernel speaks.
        device: for tests.

    Raises:
        Unavailable: `Settings.accel` forces KVM and this machine denies it.
    """
    if settings.accel == "tcg":
        return Verdict("tcg", "VOIDBOX_ACCEL=tcg", 0.0)
    denied = _denied(device)
    if settings.accel == "kvm":
        if denied:
            raise Unavailable(f"VOIDBOX_ACCEL=kvm, but {denied}; unset it to run under emulation.")
        return Verdict("kvm", "VOIDBOX_ACCEL=kvm", 0.0)
    if denied:
        return Verdict("tcg", denied, 0.0)
    path = settings.cache / "probe" / f"{await run_sync(_key, hypervisor, image)}.json"
    verdict = await run_sync(_load, path)
    if verdict is None:
        verdict = await _boot(hypervisor.emulator, image, timeout_s)
        await run_sync(_save, path, verdict)
    return verdict


def _denied(device: Path) -> str | None:
    """Why `device` cannot be opened; None when it can."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {device}"
    except PermissionError:
        return f"this user may not open {device} (group kvm may, on most systems)"
    except OSError as error:
        return f"{device} cannot be opened ({error.strerror})"
    return None


async def _boot(emulator: Path, image: Bootable, timeout_s: float) -> Verdict:
    longest = timeout_s * PATIENCE
    arguments = [
        "timeout", "--signal=KILL", f"{longest + 5:g}",
        str(emulator), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine", "q35,accel=kvm,vmport=off,smm=off,hpet=off", "-cpu", "host", "-m", "256", "-serial", "stdio",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", CMDLINE,
    ]  # fmt: skip
    began = time.monotonic()
    output = bytearray()

    def verdict(accelerator: Accelerator, reason: str) -> Verdict:
        return Verdict(accelerator, reason, round(time.monotonic() - began, 3))

    try:
        process = await anyio.open_process(
            arguments, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        return verdict("tcg", f"the KVM probe could not start QEMU ({error.strerror})")
    assert process.stdout is not None
    try:
        with anyio.move_on_after(timeout_s) as bound:
            async for data in process.stdout:
                if ALIVE not in output and ALIVE in output + data:
                    bound.deadline = anyio.current_time() + longest - (time.monotonic() - began)
                output += data
                del output[:-OUTPUT_CAP]
                if UP in output:
                    return verdict("kvm", "the guest kernel boots under KVM")
    finally:
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: `timeout` and QEMU
            await process.wait()
            # asyncio lets go of a pipe only at its end.
            with anyio.move_on_after(1):
                async for _ in process.stdout:
                    pass
    if bound.cancelled_caught:
        limit = longest if ALIVE in output else timeout_s
        return verdict("tcg", f"{DEVICE} opens, but the guest kernel did not boot under KVM within {limit:g} s")
    last = _last_line(output)
    return verdict("tcg", f"{DEVICE} opens, but QEMU ended under KVM{f': {last}' if last else ''}")


def _last_line(output: bytes | bytearray) -> str:
    lines = ["".join(c for c in line if c.isprintable()) for line in output.decode(errors="replace").splitlines()]
    return next((line[:160] for line in reversed(lines) if line.strip()), "")


def _key(hypervisor: Emulated, image: Bootable) -> str:
    """Blocking: hashes the kernel, 0.1 s for 50 MB."""
    with image.kernel.open("rb") as file:
        kernel = hashlib.file_digest(file, "sha256").hexdigest()
    processor = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        processor = next((line for line in text.splitlines() if line.startswith("model name")), "")
    facts = [platform.release(), hypervisor.qemu_version, str(hypervisor.emulator), processor, kernel, CMDLINE]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _load(path: Path) -> Verdict | None:
    """Blocking."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        verdict = Verdict(data["accelerator"], str(data["reason"]), float(data["seconds"]))
        age = time.time() - path.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if verdict.accelerator == "kvm" or (verdict.accelerator == "tcg" and age < FAILURE_LIFETIME_S):
        return replace(verdict, cached=True)
    return None


def _save(path: Path, verdict: Verdict) -> None:
    """Blocking. A cache that cannot be written costs the next start a probe."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
        part.replace(path)
