"""Boots the outer VM, shows its serial line, and always ends it."""

from __future__ import annotations

import secrets
import selectors
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .root import LaneError, OuterRoot
from .verdict import Judge, Verdict

MEMORY_MB = 3072
_MAX_LINE = 8192


def boot(
    root: OuterRoot, work_disk: Path, *, limit_s: float, silence_s: float, show: Callable[[str], None]
) -> Verdict:
    """Boot `root` with `work_disk` beside it, and judge what it says within `limit_s` seconds.

    Ends the VM also when nothing was said for `silence_s` seconds. Both disks stay as they are.

    QEMU that does not start shows as a VM that ended by itself, with QEMU's words on its line.

    Raises:
        LaneError: there is no `setpriv`.
    """
    judge = Judge(secrets.token_hex(8))
    # Should this process be killed meanwhile, the kernel ends QEMU (prctl(2), PR_SET_PDEATHSIG).
    bound = ["setpriv", "--pdeathsig", "KILL", *command(root, work_disk, judge.nonce)]
    try:
        process = subprocess.Popen(
            bound,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise LaneError("The KVM lane needs `setpriv` from util-linux; install it.") from None
    try:
        ended = _follow(process, judge, limit_s=limit_s, silence_s=silence_s, show=show)
    finally:
        process.kill()
        process.wait()
    return judge.verdict(ended)


def command(root: OuterRoot, work_disk: Path, nonce: str) -> list[str]:
    """QEMU's command line. One vCPU: with two, an emulated SVM locked up now and then, with one never."""
    drive = "format=raw,if=none,snapshot=on,cache=unsafe"
    arguments = (
        # Level 3 lets panics through and not KVM's word on each inner boot; init shows errors when checks fail.
        f"console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr "
        f"root=/dev/nvme0n1 rw init=/sbin/lane-init lane.nonce={nonce}"
    )
    # fmt: off
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35,usb=off", "-accel", "tcg,tb-size=1024", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MB),
        "-nic", "none", "-serial", "stdio",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-kernel", str(root.kernel), "-append", arguments,
        "-drive", f"file={_escaped(root.disk)},id=root,{drive}", "-device", "nvme,drive=root,serial=root",
        "-drive", f"file={_escaped(work_disk)},id=work,{drive}", "-device", "nvme,drive=work,serial=work",
    ]
    # fmt: on


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def _follow(
    process: subprocess.Popen[bytes],
    judge: Judge,
    *,
    limit_s: float,
    silence_s: float,
    show: Callable[[str], None],
) -> str:
    """Feed `judge` until the VM ends or a bound is hit; says which, in a few words."""
    assert process.stdout is not None
    deadline = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        rest = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return f"not done within {limit_s:g} s"
            if not selector.select(min(left, silence_s)):
                return f"silent for {silence_s:g} s" if left > silence_s else f"not done within {limit_s:g} s"
            chunk = process.stdout.read1(65536)  # type: ignore[attr-defined]  # a BufferedReader
            *lines, rest = (rest + chunk).split(b"\n")
            if not chunk or len(rest) > _MAX_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                text = line.decode(errors="replace").rstrip("\r")
                judge.feed(text)
                show(text)
            if not chunk:
                return f"it ended by itself, QEMU's status {process.wait(10)}"
            if judge.done:
                # Powering off takes seconds and proves nothing more.
                return "done"
