"""The floors of a start: QEMU run by hand with a box's own kernel, layers and guest. No libvirt, no handshake."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import voidbox_lab
from voidbox_lab.bench.leash import leashed
from voidbox_lab.box.boot_data import TEMPLATE_BOOT_DATA, boot_data
from voidbox_lab.errors import ProviderError
from voidbox_lab.images.model import TCG_CPU
from voidbox_lab.machines import Recipe
from voidbox_lab.machines.sparse import copy_sparse
from voidbox_lab.vsock.user import DEVICE_PROGRAM
from voidbox_lab.wire import protocol as p

BOUND_S = 180.0
PORT = 1024


@dataclass(frozen=True)
class BareTemplate:
    """A guest saved by hand."""

    recipe: Recipe
    emulator: Path
    work: Path
    """In a tmpfs."""


def cold(recipe: Recipe, emulator: Path, work: Path) -> float:
    """Seconds from starting QEMU to the guest agent's ready line. Blocking.

    `emulator` is the QEMU that boxes run, here and below: another's time would be no floor of theirs.

    Raises:
        ProviderError: the guest did not come up, or the disk is full; as all of this module.
    """
    _copy(recipe.image.scratch, work / "scratch")
    boot = _boot_file(work)
    began = time.monotonic()
    with _qemu(recipe, emulator, work, boot, []) as qemu:
        _await_line(qemu, work, p.READY_LINE)
        return time.monotonic() - began


def make_template(recipe: Recipe, emulator: Path, work: Path) -> BareTemplate:
    """Boot and save what `clone` restores. Blocking."""
    (work / "boot").write_bytes(TEMPLATE_BOOT_DATA)
    _copy(recipe.image.scratch, work / "scratch")
    with _qemu(recipe, emulator, work, work / "boot", _memory(recipe, work / "ram")) as qemu:
        _await_line(qemu, work, p.TEMPLATE_LINE)
        with _Monitor(work) as monitor:
            monitor("stop")
            monitor.ignore_shared()
            monitor("migrate", uri=f"exec:cat > {work}/state")
            monitor.until("query-migrate", "completed")
    # As the product keeps it: without the pages that are zero.
    copied = subprocess.run(
        ["cp", "--sparse=always", work / "ram", work / "kept"], capture_output=True, check=False
    )
    if copied.returncode:
        said = copied.stderr.decode(errors="replace").strip()
        raise ProviderError(f"A bare template could not be kept ({said}); make room in {work}.", cause="disk")
    (work / "scratch").replace(work / "kept-scratch")
    return BareTemplate(recipe, emulator, work)


def clone(template: BareTemplate) -> float:
    """Seconds from nothing to the clone's first byte by user-space vsock. Blocking.

    Not counted: the vsock device's own start, which can be had beforehand.
    """
    work, recipe = template.work, template.recipe
    (work / "ram").unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    (work / f"vs_{PORT}").unlink(missing_ok=True)
    listener.bind(str(work / f"vs_{PORT}"))
    listener.listen()
    listener.settimeout(BOUND_S)
    with listener, _device(work):
        began = time.monotonic()
        _copy(work / "kept", work / "ram")
        _copy(work / "kept-scratch", work / "scratch")
        extra = [*_memory(recipe, work / "ram"), "-chardev", f"socket,id=vs,path={work}/vu", "-incoming", "defer"]
        boot = _boot_file(work)
        with _qemu(recipe, template.emulator, work, boot, extra), _Monitor(work) as monitor:
            monitor.ignore_shared()
            monitor("migrate-incoming", uri=f"exec:cat {work}/state")
            while monitor("query-status")["status"] == "inmigrate":
                time.sleep(0.001)
            device = {"driver": "vhost-user-vsock-pci", "id": "vs0", "chardev": "vs", "disable-legacy": "on"}
            monitor("device_add", bus="spare", addr="0", **device)
            monitor("cont")
            stream, _ = listener.accept()
            with stream:
                stream.settimeout(BOUND_S)
                stream.recv(1)
                return time.monotonic() - began


def _boot_file(work: Path) -> Path:
    (work / "boot").write_bytes(boot_data("bench", PORT, secrets.token_bytes(32)))
    return work / "boot"


def _copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    copy_sparse(source, target)


def _memory(recipe: Recipe, ram: Path) -> list[str]:
    backend = f"memory-backend-file,id=ram,size={recipe.memory_mb}M,share=on,mem-path={ram}"
    port = "pcie-root-port,id=spare,bus=pcie.0,chassis=1,addr=0x17"
    return ["-object", backend, "-machine", "memory-backend=ram", "-device", port]


@contextmanager
def _qemu(
    recipe: Recipe, emulator: Path, work: Path, boot: Path, extra: list[str]
) -> Iterator[subprocess.Popen[bytes]]:
    image = recipe.image
    accel, cpu = ("kvm", "host") if recipe.accelerator == "kvm" else ("tcg,tb-size=256", TCG_CPU)
    argv = [str(emulator), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-accel", accel, "-cpu", cpu, "-machine", "q35,usb=off,hpet=off,smm=off,vmport=off"]
    argv += ["-m", str(recipe.memory_mb), "-smp", str(recipe.vcpus)]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-serial", f"file:{work}/serial"]
    argv += ["-append", image.arguments(recipe.accelerator), "-fw_cfg", f"name=opt/voidbox/boot,file={boot}"]
    argv += ["-qmp", f"unix:{work}/qmp,server,nowait"]
    disks = [(layer.path, "on") for layer in image.layers] + [(work / "scratch", "off")]
    for n, (path, read_only) in enumerate(disks):
        argv += ["-drive", f"file={path},format=raw,if=none,id=d{n},read-only={read_only}"]
        argv += ["-device", f"virtio-blk-pci,drive=d{n},disable-legacy=on,addr={3 + n:#x}"]
    for name in ("serial", "qmp"):
        (work / name).unlink(missing_ok=True)
    with leashed(argv + extra) as qemu:
        yield qemu


def _await_line(qemu: subprocess.Popen[bytes], work: Path, line: str) -> None:
    end = time.monotonic() + BOUND_S
    while time.monotonic() < end and qemu.poll() is None:
        with suppress(FileNotFoundError):
            if line.encode() in (work / "serial").read_bytes():
                return
        time.sleep(0.005)
    raise ProviderError("A bare guest never said that it is ready; see whether `voidbox doctor` boots one.")


@contextmanager
def _device(work: Path) -> Iterator[None]:
    package = str(Path(voidbox_lab.__file__).parent.parent)
    argv = [sys.executable, "-I", "-S", "-c", DEVICE_PROGRAM, package, "--socket", f"{work}/vu"]
    argv += ["--host-socket", f"{work}/vs", "--cid", "3"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as device:
        try:
            assert device.stdout is not None
            if device.stdout.readline() != b"ready\n":
                raise ProviderError("The vsock device of a bare guest did not start; see `voidbox doctor`.")
            yield
        finally:
            device.kill()


class _Monitor:
    """QMP over a UNIX socket, a command at a time."""

    def __init__(self, work: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 10
        while True:
            try:
                self._socket.connect(os.fspath(work / "qmp"))
            except OSError as error:
                if time.monotonic() > end:
                    raise ProviderError(
                        "A bare QEMU did not start within 10 s; see whether `voidbox doctor` boots one.",
                        cause="qmp",
                    ) from error
                time.sleep(0.001)
            else:
                break
        self._socket.settimeout(BOUND_S)
        self._file = self._socket.makefile("rw")
        self._read()
        self("qmp_capabilities")

    def __enter__(self) -> _Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def __call__(self, command: str, **arguments: Any) -> dict[str, Any]:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = self._read()
            if "error" in answer:
                raise ProviderError(f"QEMU refused {command}: {answer['error'].get('desc')}.", cause="qmp")
            if "return" in answer:
                found = answer["return"]
                return found if isinstance(found, dict) else {}

    def _read(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self._file.readline())
        except (OSError, ValueError) as error:  # nothing at all, where QEMU was killed
            raise ProviderError(
                "A bare QEMU ended or stopped answering; make room in /dev/shm and look at the host's memory.",
                cause="qmp",
            ) from error
        return answer

    def ignore_shared(self) -> None:
        self("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])

    def until(self, command: str, status: str) -> None:
        end = time.monotonic() + BOUND_S
        while (found := self(command).get("status")) != status:
            if found == "failed" or time.monotonic() > end:
                raise ProviderError(
                    f"{command} of a bare QEMU said {found} and not {status} within {BOUND_S:g} s; "
                    "make room in /dev/shm.",
                    cause="qmp",
                )
            time.sleep(0.005)
