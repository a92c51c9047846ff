"""Cold boot: from a request to the first exec result, against bare QEMU booting the same files.

    .venv/bin/python bench/cold_boot.py [--samples 5] [--memory 512] [--json FILE]

Floor: QEMU started by hand with the same kernel, initramfs, kernel arguments, layers, scratch disk and boot file,
until its serial line says that the guest agent is ready; no libvirt, no vsock, no handshake.
Subject: `Boxes.open` (directories, scratch copy, vsock device, libvirt, boot, handshake) and one `exec` of
``/bin/true``, until its exit code is here. Floor and subject alternate, so that a busy neighbour hits both.
"""

from __future__ import annotations

import argparse
import json
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

from voidbox_lab import images
from voidbox_lab.box import Boxes
from voidbox_lab.machines import Hypervisor, probe_accelerator
from voidbox_lab.settings import Settings
from voidbox_lab.wire.protocol import READY_LINE

BOUND_S = 180.0
WANTED = 1.25


@dataclass(frozen=True)
class Sample:
    """Seconds of one pair."""

    floor_s: float
    """Bare QEMU to the ready line."""
    boot_s: float
    """The box: request to handshaken."""
    first_exec_s: float
    """The box: request to the first exit code."""


def bare_boot(image: images.Image, accelerator: str, memory_mb: int, work: Path) -> float:
    """Seconds from starting QEMU to the guest agent's ready line."""
    scratch = work / "scratch.img"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", image.scratch, scratch], check=True)
    boot_file = work / "boot"
    boot_file.write_text(
        json.dumps(
            {
                "version": 1,
                "secret": secrets.token_hex(32),
                "hostname": "bench",
                "control_port": 1024,
                "entropy": secrets.token_hex(64),
                "time_ns": time.time_ns(),
            }
        )
    )
    accel, cpu = ("kvm", "host") if accelerator == "kvm" else ("tcg,tb-size=256", images.TCG_CPU)
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-accel", accel, "-cpu", cpu, "-M", "q35,usb=off,hpet=off,smm=off,vmport=off", "-m", str(memory_mb)]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-serial", "stdio"]
    argv += ["-append", image.arguments("kvm" if accelerator == "kvm" else "tcg")]
    argv += ["-fw_cfg", f"name=opt/voidbox/boot,file={boot_file}"]
    disks = [(layer.path, "on") for layer in image.layers] + [(scratch, "off")]
    for n, (path, read_only) in enumerate(disks):
        argv += ["-drive", f"file={path},format=raw,if=none,id=d{n},read-only={read_only}"]
        argv += ["-device", f"virtio-blk-pci,drive=d{n},disable-legacy=on"]
    began = time.monotonic()
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as qemu:
        assert qemu.stdout is not None
        try:
            for line in qemu.stdout:
                if READY_LINE.encode() in line:
                    return time.monotonic() - began
                if time.monotonic() - began > BOUND_S:
                    break
            raise SystemExit("the bare guest never said that it is ready")
        finally:
            qemu.kill()


async def measure(samples: int, memory_mb: int) -> tuple[list[Sample], str]:
    """`samples` pairs, alternating, after one unmeasured pair that warms the page cache."""
    settings = Settings.from_env().prepare()
    image = images.resolve(settings)
    hypervisor = await Hypervisor.open(settings)
    found: list[Sample] = []
    try:
        verdict = await probe_accelerator(settings, hypervisor, image)
        with tempfile.TemporaryDirectory() as work:
            async with Boxes(settings, hypervisor) as boxes:
                for n in range(samples + 1):
                    floor = await anyio.to_thread.run_sync(
                        bare_boot, image, verdict.accelerator, memory_mb, Path(work)
                    )
                    began = time.monotonic()
                    box = await boxes.open(memory_mb=memory_mb)
                    opened = time.monotonic() - began
                    try:
                        done = await box.run(["/bin/true"])
                        sample = Sample(floor, opened, time.monotonic() - began)
                        assert done.exit_code == 0
                    finally:
                        await box.close()
                    if n:
                        found.append(sample)
                    print(("warm-up " if not n else f"{n:7} ") + json.dumps(asdict(sample)), file=sys.stderr)
    finally:
        await hypervisor.aclose()
    return found, verdict.accelerator


def main() -> None:
    """Measure, print medians and the ratio, keep the raw samples."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--memory", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write raw samples here")
    args = parser.parse_args()
    samples, accelerator = anyio.run(measure, args.samples, args.memory)
    floor = statistics.median(s.floor_s for s in samples)
    boot = statistics.median(s.boot_s for s in samples)
    first = statistics.median(s.first_exec_s for s in samples)
    ratio = statistics.median(s.first_exec_s / s.floor_s for s in samples)
    print(f"accelerator {accelerator}, {args.memory} MB, {len(samples)} pairs, medians")
    print(f"floor (bare QEMU to its ready line)  {floor:6.2f} s")
    print(f"box handshaken                       {boot:6.2f} s")
    print(f"first exec result                    {first:6.2f} s")
    print(f"ratio first exec / floor             {ratio:6.2f}   (wanted: <= {WANTED})")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps(
                {
                    "benchmark": "cold_boot",
                    "host": platform.platform(),
                    "accelerator": accelerator,
                    "memory_mb": args.memory,
                    "ratio": ratio,
                    "samples": [asdict(s) for s in samples],
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
