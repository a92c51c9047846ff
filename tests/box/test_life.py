"""What the calls of a box hear when it ends: who closed it, and why. The connection is real, QEMU is not there."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from voidbox_lab.box import Boxes, life
from voidbox_lab.box.connection import Connection
from voidbox_lab.box.life import Life
from voidbox_lab.errors import BoxLost, Cancelled, VoidboxError
from voidbox_lab.machines import Gone
from voidbox_lab.settings import Settings
from voidbox_lab.vsock import Stream

pytestmark = pytest.mark.anyio
LOST = "its daemon ended"


class FakeMachine:
    """Ends when told to."""

    def __init__(self) -> None:
        self.end = anyio.Event()
        self.gone = Gone("killed", "")

    async def wait_gone(self) -> Gone:
        await self.end.wait()
        return self.gone


@asynccontextmanager
async def a_box(lost: str | None = None) -> AsyncIterator[Any]:
    """A `Life` with an open call, whose error is in `heard` in the end."""
    ours, guests = socket.socketpair()
    heard: list[VoidboxError] = []
    box = SimpleNamespace(machine=FakeMachine(), guest=Stream(guests), lost=lost, heard=heard)
    nothing: Any = None
    box.connection = Connection(Stream(ours))
    box.life = Life("vb-0", box.connection, box.machine, nothing, lambda: box.lost)

    async def call() -> None:
        try:
            await box.connection.request("exec")
        except VoidboxError as e:
            heard.append(e)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(box.life.run)
            tasks.start_soon(call)
            await anyio.sleep(0.01)
            yield box
            await box.guest.aclose()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No guest answers here; waiting for it would prove nothing."""
    monkeypatch.setattr(life, "SHUTDOWN_S", 0.05)


@pytest.mark.parametrize("lost", [None, LOST])
async def test_a_box_closed_by_its_owner_is_a_cancellation(lost: str | None) -> None:
    """Whatever libvirt does meanwhile."""
    async with a_box(lost) as box:
        await box.life.end()
    (error,) = box.heard
    assert isinstance(error, Cancelled)
    assert error.cause == "closed"


@pytest.mark.parametrize(
    ("reason", "tail", "lost", "cause"),
    [
        ("killed", "", LOST, "libvirt-lost"),
        ("destroyed", "", LOST, "libvirt-lost"),
        ("killed", "", None, "qemu-died"),
        ("panic", "Kernel panic - not syncing: sysrq", LOST, "guest-panic"),
        ("shutdown", "", LOST, "guest-agent-died"),
    ],
)
async def test_qemu_that_libvirt_took_along(reason: Any, tail: str, lost: str | None, cause: str) -> None:
    """A guest's own end stays its own, though libvirt is gone as well."""
    async with a_box(lost) as box:
        box.machine.gone = Gone(reason, tail)
        box.machine.end.set()
    (error,) = box.heard
    assert isinstance(error, BoxLost)
    assert error.cause == cause
    assert (LOST in error.message) == (cause == "libvirt-lost")


class FakeBirth:
    """As far as `Boxes` closes one."""

    id = "vb-0"

    def __init__(self, of: Life) -> None:
        self.blame, self.undo = of.blame, of.end


class Keeper(Exception):
    """A fault of the task that holds the boxes."""


@pytest.mark.parametrize(
    ("lost", "fault", "kind", "cause"),
    [
        (LOST, None, BoxLost, "libvirt-lost"),
        (None, Keeper(), BoxLost, "internal"),
        (None, None, Cancelled, "closed"),
    ],
)
async def test_boxes_that_end_take_their_box_along(
    lost: str | None, fault: Exception | None, kind: type[VoidboxError], cause: str
) -> None:
    """Under a stage: the host's failure, if it was one; a daemon that is told to end cancels."""
    host: Any = SimpleNamespace(lost=lost)
    async with a_box(lost) as box:
        birth: Any = FakeBirth(box.life)
        with nullcontext() if fault is None else pytest.raises(Keeper):
            async with Boxes(Settings.from_env(), host) as made:
                made._alive.add(birth)
                if fault is not None:
                    raise fault
        assert made.running == 0
    (error,) = box.heard
    assert isinstance(error, kind)
    assert error.cause == cause


async def test_an_opening_counts_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a lost connection would be taken for empty, and the box closed the moment it is up."""
    nothing: Any = None
    reached = anyio.Event()

    async def image(*_: object, **__: object) -> None:
        reached.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(Boxes, "recipe", image)
    async with Boxes(Settings.from_env(), nothing) as made, anyio.create_task_group() as tasks:
        tasks.start_soon(made.open)
        await reached.wait()
        assert made.running == 1
        tasks.cancel_scope.cancel()
    assert made.running == 0
