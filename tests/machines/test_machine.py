"""Real domains: started, seen from inside, ended in every way there is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from voidbox_lab.errors import ProviderError, Unavailable
from voidbox_lab.images import Image
from voidbox_lab.machines import BoxDirs, Disk, Hypervisor, Machine, MachineSpec, Owner, claim
from voidbox_lab.settings import Settings
from voidbox_lab.vsock import open_user

from . import guests

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

BOOT_S = 60.0
"""A boot takes 2-4 s on an idle machine under emulation; tests share theirs."""

Start = Callable[..., Awaitable[Machine]]


@pytest.fixture
async def start(settings: Settings, hypervisor: Hypervisor, image: Image) -> AsyncIterator[Start]:
    """Starts machines, which are gone with their directories and QEMUs after the test."""
    started: list[Machine] = []

    async def go(script: str, **changes: object) -> Machine:
        spec = guests.make_spec(settings, image, script, **changes)  # type: ignore[arg-type]
        started.append(await hypervisor.start(spec))
        return started[-1]

    yield go
    for machine in started:
        await machine.destroy()
        BoxDirs.of(settings, machine.name).remove()
        assert guests.qemus(machine.name) == []


async def until_ready(machine: Machine, text: str = guests.READY) -> None:
    """Wait for `text` on the console."""
    with anyio.fail_after(BOOT_S):
        while text not in machine.console_tail():
            assert machine.running, machine.console_tail()
            await anyio.sleep(0.02)


async def test_start_and_destroy(start: Start, hypervisor: Hypervisor) -> None:
    """A box runs, is found by its owner mark, is sandboxed, and is gone at once when destroyed."""
    machine = await start(guests.IDLE)
    await until_ready(machine)
    assert guests.qemus(machine.name) == [machine.pid]
    assert (machine.name, machine.spec.owner) in [(o.name, o.owner) for o in await hypervisor.owned()]
    process = Path(f"/proc/{machine.pid}")
    assert b"-sandbox\0on,obsolete=deny,elevateprivileges=deny,spawn=deny" in (process / "cmdline").read_bytes()
    assert "Seccomp:\t2" in (process / "status").read_text(), "a filter is really loaded (proc(5))"
    assert "CapEff:\t0000000000000000" in (process / "status").read_text(), "no capabilities, not even for root"
    with anyio.fail_after(5):
        await machine.destroy()
        assert (await machine.wait_gone()).reason == "destroyed"
    await machine.destroy()
    assert guests.qemus(machine.name) == []
    assert not (machine.spec.console_log.parent / "console.sock").exists()
    assert guests.READY in machine.spec.console_log.read_text()


async def test_the_guest_sees_what_the_spec_says(start: Start, settings: Settings, tmp_path: Path) -> None:
    """Boot file, disks in order with serials, the vsock device (virtio id 19), SSE4.2; and nothing else virtio."""
    box = guests.new_box()
    dirs = claim(settings, Owner.current(settings, box))
    disks = []
    for size, read_only in ((1, True), (2, True), (3, False)):
        path = tmp_path / f"{size}.img"
        path.touch()
        os.truncate(path, size << 20)
        disks.append(Disk(path, read_only, f"disk-{size}"))
    transport = await open_user(dirs.runtime, cid=77)
    try:
        machine = await start(guests.INSPECT, box=box, dirs=dirs, disks=tuple(disks), vsock=transport.domain())
        assert machine.cid == 77
        with anyio.fail_after(BOOT_S):
            assert (await machine.wait_gone()).reason == "shutdown"
    finally:
        await transport.aclose()
    seen = machine.console_tail().splitlines()
    assert "boot: what the box is told" in seen
    assert [line for line in seen if line.startswith("disk:")] == [
        f"disk: vd{name} serial=disk-{size} ro={ro} size={size * 2048}"
        for name, size, ro in (("a", 1, 1), ("b", 2, 1), ("c", 3, 0))
    ]
    assert sorted(line for line in seen if line.startswith("virtio:")) == ["virtio: 0x0002"] * 3 + [
        "virtio: 0x0013"
    ]
    assert "cpu: 1" in seen


@pytest.mark.parametrize(
    ("script", "reason", "says"),
    [
        (guests.PANIC, "panic", "Kernel panic - not syncing: sysrq triggered crash"),
        (guests.POWER_OFF, "shutdown", "Power down"),
        ("exit 3", "panic", "Attempted to kill init"),
    ],
    ids=["sysrq", "power-off", "init-dies"],
)
async def test_the_guest_ends_itself(start: Start, script: str, reason: str, says: str) -> None:
    """A panic and a power-off are told apart, and the console's last words are there."""
    machine = await start(script)
    with anyio.fail_after(BOOT_S):
        gone = await machine.wait_gone()
    assert gone.reason == reason
    assert says in machine.console_tail(1 << 16)
    assert gone == await machine.wait_gone(), "a second waiter hears the same"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_qemu_is_killed(start: Start, number: signal.Signals) -> None:
    """Whoever waits hears it within seconds, and destroying what is gone is no error."""
    machine = await start(guests.IDLE)
    assert machine.pid is not None
    async with anyio.create_task_group() as group:
        heard: list[str] = []

        async def wait() -> None:
            heard.append((await machine.wait_gone()).reason)

        group.start_soon(wait)
        group.start_soon(wait)
        os.kill(machine.pid, number)
        with anyio.fail_after(5):
            while len(heard) < 2:
                await anyio.sleep(0.01)
    assert heard == ["killed", "killed"]
    await machine.destroy()


async def test_many_at_once(start: Start) -> None:
    """Four machines start and end side by side, and two destroys of one machine meet."""
    machines: list[Machine] = []

    async def go() -> None:
        machines.append(await start(guests.IDLE))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(go)
    assert len({machine.pid for machine in machines}) == 4
    async with anyio.create_task_group() as group:
        for machine in machines:
            group.start_soon(machine.destroy)
            group.start_soon(machine.destroy)
    assert [m.running for m in machines] == [False] * 4


async def test_a_cancelled_start_leaves_no_machine(
    settings: Settings, hypervisor: Hypervisor, image: Image
) -> None:
    """The domain that libvirt was creating when its stage was cancelled does not stay."""
    spec = guests.make_spec(settings, image, guests.IDLE)
    try:
        with anyio.move_on_after(0.1) as scope:
            await hypervisor.start(spec)
        assert scope.cancelled_caught
        with anyio.fail_after(20):
            while guests.qemus(spec.name) or spec.name in [o.name for o in await hypervisor.owned()]:
                await anyio.sleep(0.05)
    finally:
        BoxDirs.of(settings, spec.name).remove()


async def test_a_start_past_its_bound(settings: Settings, hypervisor: Hypervisor, image: Image) -> None:
    """The error names the bound; the late machine is destroyed."""
    spec = guests.make_spec(settings, image, guests.IDLE)
    try:
        with pytest.raises(ProviderError, match=r"did not start vb-\w+ within 0\.05 s"):
            await hypervisor.start(spec, timeout_s=0.05)
        with anyio.fail_after(20):
            while guests.qemus(spec.name) or spec.name in [o.name for o in await hypervisor.owned()]:
                await anyio.sleep(0.05)
    finally:
        BoxDirs.of(settings, spec.name).remove()


def _missing_kernel(spec: MachineSpec) -> MachineSpec:
    return MachineSpec(**{**vars(spec), "kernel": Path("/nonexistent/vmlinux")})


def _too_large(spec: MachineSpec) -> MachineSpec:
    return MachineSpec(**{**vars(spec), "memory_mb": 1 << 24})


def _not_a_kernel(spec: MachineSpec) -> MachineSpec:
    path = spec.console_log.parent / "kernel"
    path.write_bytes(b"\x7fELF, but no more")
    return MachineSpec(**{**vars(spec), "kernel": path})


@pytest.mark.parametrize(
    ("spoil", "kind", "says"),
    [
        (_missing_kernel, Unavailable, "/nonexistent/vmlinux .* image build"),
        (_too_large, ProviderError, "16777216 MB needs .* smaller box"),
        (_not_a_kernel, ProviderError, "libvirt could not start vb-"),
    ],
    ids=["no-kernel", "no-memory", "bad-kernel"],
)
async def test_what_cannot_start(
    settings: Settings,
    hypervisor: Hypervisor,
    image: Image,
    spoil: Callable[[MachineSpec], MachineSpec],
    kind: type[ProviderError],
    says: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One sentence, nothing on stderr, nothing left running, and the name is free again."""
    spec = guests.make_spec(settings, image, guests.IDLE)
    descriptors = guests.descriptors()
    try:
        for _ in range(2):
            with pytest.raises(kind, match=says):
                await hypervisor.start(spoil(spec))
        assert guests.qemus(spec.name) == []
        assert not (spec.console_log.parent / "console.sock").exists()
        assert guests.descriptors() <= descriptors + 1
    finally:
        BoxDirs.of(settings, spec.name).remove()
    assert capfd.readouterr() == ("", "")


async def test_close_and_open_again(settings: Settings, hypervisor: Hypervisor, image: Image) -> None:
    """A second hypervisor in one process works beside the first; closing it ends its machines only."""
    threads = threading.active_count()
    second = await Hypervisor.open(settings)
    spec = guests.make_spec(settings, image, guests.IDLE)
    try:
        machine = await second.start(spec)
        await second.aclose()
        await second.aclose()
        assert (await machine.wait_gone()).reason == "destroyed"
        assert guests.qemus(spec.name) == []
        assert hypervisor.uri == second.uri
        assert isinstance(await hypervisor.owned(), list)
        assert threading.active_count() <= threads + 4, "no thread stays but anyio's own idle workers"
    finally:
        BoxDirs.of(settings, spec.name).remove()
