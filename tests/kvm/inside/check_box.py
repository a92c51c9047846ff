"""A box under real KVM with the kernel's vsock, from its birth to nothing left of it."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import anyio
import pytest

from tests.kvm.inside.shared import BOOT_S, MEMORY_MB, SharedBox
from tests.kvm.inside.witness import cid_of, qemu_of
from voidbox_lab.box import Boxes
from voidbox_lab.machines import BoxDirs, Hypervisor
from voidbox_lab.settings import Settings

GONE_S = 60.0

pytestmark = [pytest.mark.anyio, pytest.mark.vm]


async def test_facts_say_kvm_and_kernel(shared: SharedBox) -> None:
    """Nobody asked for either: they were found to work."""
    facts = shared.box.facts
    assert (facts.isolation, facts.vsock) == ("kvm", "kernel")
    assert (facts.memory_mb, facts.vcpus) == (MEMORY_MB, 1)
    assert 0 < facts.boot_s < BOOT_S


async def test_qemu_says_the_same(shared: SharedBox, hypervisor: Hypervisor) -> None:
    """QEMU holds a KVM machine and the vhost-vsock device; the facts are not merely claimed."""
    qemu = qemu_of(shared.box.id)
    assert qemu is not None
    assert qemu.accelerator == "kvm"
    assert "anon_inode:kvm-vm" in qemu.devices
    assert "/dev/vhost-vsock" in qemu.devices
    assert await cid_of(hypervisor, shared.box.id) > 2


async def test_the_guest_says_the_same(shared: SharedBox) -> None:
    """Its kernel found KVM's clock, which TCG does not offer (Linux Documentation/virt/kvm/x86/msr.rst)."""
    sources = "/sys/devices/system/clocksource/clocksource0/available_clocksource"
    done = await shared.box.run(["cat", sources], user="root", timeout_s=60)
    assert b"kvm-clock" in done.stdout.split(), done


async def test_a_command_runs(shared: SharedBox) -> None:
    """Output, error output, input and exit status, as the agent's user, without any network card."""
    script = "read word; echo out $word; echo err >&2; id -u; ls /sys/class/net; exit 7"
    done = await shared.box.run(["sh", "-c", script], stdin=b"in\n", timeout_s=120)
    assert (done.exit_code, done.stdout, done.stderr) == (7, b"out in\n1000\nlo\n", b"err\n")


async def test_files_go_in_and_out(shared: SharedBox) -> None:
    """A megabyte each way by the control connection, whole."""
    data = bytes(range(256)) * 4096
    assert await shared.box.put(data, "/workspace/data") == len(data)
    assert await shared.box.get("/workspace/data") == data


async def test_a_destroyed_box_leaves_nothing(
    boxes: Boxes, shared: SharedBox, settings: Settings, hypervisor: Hypervisor, measured: list[str]
) -> None:
    """A second box has a CID of its own; after its end there is no QEMU, domain, file, listener or CID of it."""
    sockets = vsock_sockets()
    box = await boxes.open(memory_mb=MEMORY_MB, timeout_s=BOOT_S)
    async with box:
        qemu = qemu_of(box.id)
        assert qemu is not None
        cid = await cid_of(hypervisor, box.id)
        assert cid != shared.cid
        dirs = BoxDirs.of(settings, box.id)
        assert dirs.runtime.is_dir()
        assert dirs.cache.is_dir()
        assert (await box.run(["true"], timeout_s=120)).exit_code == 0
        assert vsock_sockets() > sockets
        began = anyio.current_time()
    closed = anyio.current_time()
    # QEMU is dead; that libvirt has waited for it and forgotten its domain takes moments, and more in here.
    with anyio.fail_after(GONE_S):
        while qemu_of(box.id) is not None or box.id in {owned.name for owned in await hypervisor.owned()}:
            await anyio.sleep(0.1)
    measured += [
        f"second box: {box.facts.boot_s:.1f} s to the handshake; phases {box.phases}",
        f"second box: closed after {closed - began:.1f} s, forgotten after {anyio.current_time() - began:.1f} s",
    ]
    assert not dirs.runtime.exists()
    assert not dirs.cache.exists()
    assert vsock_sockets() == sockets
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as dialler:
        dialler.settimeout(10)
        # What no guest has, nothing can be dialled at; a guest without a listener would reset instead.
        assert dialler.connect_ex((cid, 1)) in {errno.ENODEV, errno.EHOSTUNREACH}
    assert qemu_of(shared.box.id) is not None, "the other box is not touched"
    assert (await shared.box.run(["true"], timeout_s=120)).exit_code == 0


def vsock_sockets() -> int:
    """How many AF_VSOCK sockets this process holds."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if not str(link.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=socket.dup(int(link.name))) as copy:
                found += copy.family == socket.AF_VSOCK
        except OSError:  # the directory's own descriptor
            continue
    return found
