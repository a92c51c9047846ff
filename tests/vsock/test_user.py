"""`UserTransport` where things go wrong; that it works is the conformance suite's."""

from __future__ import annotations

import gc
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from voidbox_lab.errors import BoxLost, LimitExceeded, ProviderError, UserError
from voidbox_lab.vsock import Transport, UserTransport, VsockDevice, open_user, user

pytestmark = pytest.mark.anyio


@pytest.fixture
async def transport() -> AsyncIterator[UserTransport]:
    with tempfile.TemporaryDirectory(prefix="vb") as directory:
        transport = await open_user(Path(directory), cid=77)
        yield transport
        await transport.aclose()
        await transport.aclose()
        assert not transport.alive
        assert {path.name for path in Path(directory).iterdir()} <= {"vsock.log"}


async def test_domain_names_the_socket(transport: UserTransport) -> None:
    assert transport.domain() == VsockDevice(kind="user", socket=transport.box_dir / "vu", cid=77)
    assert isinstance(transport, Transport)


async def test_connect_before_the_guest_is_there_ends_in_time(transport: UserTransport) -> None:
    with pytest.raises(LimitExceeded, match=r"within 0\.2 s") as caught:
        await transport.connect(5, 0.2)
    assert caught.value.value == 0.2


async def test_device_killed_is_a_lost_box(transport: UserTransport) -> None:
    os.kill(transport.pid, signal.SIGKILL)
    with anyio.fail_after(5):
        assert await transport.wait_gone() == -signal.SIGKILL
    with pytest.raises(BoxLost) as caught:
        await transport.connect(5, 5)
    assert caught.value.cause == "vsock-died"


async def test_device_killed_during_a_connect_is_a_lost_box(transport: UserTransport) -> None:
    async def kill() -> None:
        await anyio.sleep(0.1)
        os.kill(transport.pid, signal.SIGKILL)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        with pytest.raises(BoxLost):
            await transport.connect(5, 10)


async def test_cancelled_connect_leaves_no_descriptor(transport: UserTransport) -> None:
    gc.collect()  # what earlier tests left to the collector is not to be counted, nor to go meanwhile
    before = len(list(Path("/proc/self/fd").iterdir()))
    with anyio.move_on_after(0.1):
        await transport.connect(5, 10)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


async def test_ports_are_checked_and_taken_once(transport: UserTransport) -> None:
    with pytest.raises(UserError, match="not a vsock port"):
        transport.listen(-1)
    with pytest.raises(UserError, match="not a vsock port"):
        transport.listen(0xFFFFFFFF)
    first, second = transport.listen(), transport.listen()
    assert first.port != second.port
    with pytest.raises(UserError, match="taken"):
        transport.listen(first.port)
    with pytest.raises(UserError, match="taken"):
        transport.forward(second.port, Path("/nowhere"))
    first.close()
    first.close()
    transport.listen(first.port).close()


async def test_closing_a_listener_wakes_who_waits_on_it(transport: UserTransport) -> None:
    listener = transport.listen()
    woken = []

    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await listener.accept(30)
        woken.append(True)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(0.05)
            listener.close()
    assert woken


async def test_too_long_a_directory_is_said_so() -> None:
    with pytest.raises(UserError, match="too long a path"):
        await open_user(Path("/tmp") / ("d" * 100))


async def test_a_device_that_cannot_start_says_why() -> None:
    with tempfile.TemporaryDirectory(prefix="vb") as directory:
        (Path(directory) / "vu").mkdir()
        with pytest.raises(ProviderError, match="cannot listen") as caught:
            await open_user(Path(directory))
        assert caught.value.cause == "vsock-start"
        (Path(directory) / "vu").rmdir()


async def test_a_device_that_hangs_at_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user, "START_S", 0.3)
    monkeypatch.setattr(user, "DEVICE_PROGRAM", "import time; time.sleep(60)")
    with (
        tempfile.TemporaryDirectory(prefix="vb") as directory,
        anyio.fail_after(10),
        pytest.raises(ProviderError, match=r"within 0\.3 s"),
    ):
        await open_user(Path(directory))


async def test_qemu_dying_during_a_connect_is_a_lost_box(transport: UserTransport) -> None:
    front = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    front.connect(str(transport.box_dir / "vu"))

    async def die() -> None:
        await anyio.sleep(0.1)
        front.close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(die)
        with pytest.raises(BoxLost):
            await transport.connect(5, 10)
    assert await transport.wait_gone() == 0
