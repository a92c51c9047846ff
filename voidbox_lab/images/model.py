"""What an image is: kernel, initramfs, read-only layers and a scratch template, all content-addressed.

Plain frozen records; how they come to be is `build`'s business, where they lie is `store`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BASE_ARGUMENTS = (
    "console=ttyS0",
    "quiet",
    # A panicking guest resets at once; the host sees a reset as the end of the box (`on_reboot=destroy`).
    "panic=-1",
    # A PVH start has no keyboard controller or CMOS worth 0.3 s of probing. Certificates are for module
    # signatures, which the initramfs's modules do not carry, and nobody traces probes here: 0.1 s.
    "initcall_blacklist=cmos_init,i8042_init,load_system_certificate_list,init_kprobe_trace",
    # The kernel's crypto self-tests: 0.25 s under TCG.
    "cryptomgr.notests",
    "tsc=reliable",
    "no_timer_check",
)
"""Kernel arguments every box boots with, whatever the accelerator."""

TCG_ARGUMENTS = ("mitigations=off",)
"""Added where QEMU emulates the CPU: page-table isolation against a flaw that an emulated CPU does not
have costs a full TLB flush per system call there. Under KVM the guest's own mitigations stay on."""

TCG_CPU = "Nehalem,+rdrand"
"""The CPU model to emulate under TCG. Nehalem is the oldest with SSE4.2, which claude-code needs; without
RDRAND the first program that asks for random bytes (Python, at its start) waits 1 s for the kernel's
jitter entropy."""


@dataclass(frozen=True)
class Layer:
    """One read-only squashfs file system, joined with the others by overlayfs in the guest."""

    name: str
    digest: str
    """``sha256:<hex>`` of the file."""
    path: Path
    size: int
    """Bytes of the file."""


@dataclass(frozen=True)
class Image:
    """All that a machine needs to boot. Layers go from bottom to top, in the order of the disks."""

    name: str
    digest: str
    """``sha256:<hex>`` over kernel, initramfs, layers, scratch template and kernel arguments."""
    kernel: Path
    """Uncompressed ELF ``vmlinux`` with a PVH entry."""
    initrd: Path
    layers: tuple[Layer, ...]
    """Those of the root, then the file systems that the guest mounts elsewhere."""
    scratch: Path
    """Sparse, empty ext4 template of the overlay's writable half; copy it (sparsely) for each box."""
    kernel_release: str
    cmdline: str
    """Kernel arguments for any accelerator, ``voidbox.layers=N`` included; see `arguments`."""

    def arguments(self, accelerator: Literal["kvm", "tcg"]) -> str:
        """The kernel command line for a box under `accelerator`."""
        return " ".join((self.cmdline, *TCG_ARGUMENTS)) if accelerator == "tcg" else self.cmdline


@dataclass(frozen=True)
class Progress:
    """One report of a build: a step begins, or its bytes have moved on."""

    step: str
    """``resolve``, ``download``, ``unpack``, ``compile``, ``squash``, ``kernel``, ``initramfs``, ``scratch``,
    ``guest``, ``agent``, ``packages``, ``done``."""
    message: str
    """One line for people."""
    done: int | None = None
    """Bytes so far, where the step counts them."""
    total: int | None = None


Report = Callable[[Progress], None]
"""Receives progress, in the thread that builds; must be quick and must not raise."""


def silent(_: Progress) -> None:
    """The `Report` of callers that do not care."""


_listener: ContextVar[Report] = ContextVar("voidbox_lab.images.listener", default=silent)


@contextmanager
def listening(report: Report) -> Iterator[None]:
    """What is made on behalf of this task is told to `report`, in the worker thread that makes it.

    A context variable (PEP 567) and not an argument: between who asks for a box and who makes its layers are
    daemons, clusters and doubles that have nothing to say about it.
    """
    token = _listener.set(report)
    try:
        yield
    finally:
        _listener.reset(token)


def listener() -> Report:
    """Who listens to this task; `silent` where nobody does."""
    return _listener.get()
