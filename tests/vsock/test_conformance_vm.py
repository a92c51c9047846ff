"""The conformance suite in real boxes: the user-space device here, the host kernel's wherever there is one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.box import Box, Boxes, birth
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Policy
from voidbox_lab.vsock import Transport, kernel_available, open_kernel, start_user

from . import conformance, guest_peer

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

BUSY = 2.0
"""Boxes here are emulated on shared cores: bulk transfers are half of what the fake guest gets."""
PEER_S = 600.0
VSOCK = Policy(syscalls=("af-vsock",))
"""The peer in the box is the agent's, and by default it has no sockets of this family."""


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Box]:
    """A box with `guest_peer` in it."""
    await run_sync(images.build, settings)
    async with Boxes.here(settings) as made, await made.open(memory_mb=256, policy=VSOCK) as box:
        await box.put(Path(guest_peer.__file__), "/workspace/guest_peer.py")
        async with await box.start_exec(["python3", "-u", "/workspace/guest_peer.py"], timeout_s=PEER_S) as peer:
            said = b""
            with anyio.fail_after(60):
                while b"LISTENING" not in said:
                    said += await peer.stdout.receive()
            yield box


@pytest.fixture(scope="module")
async def user() -> AsyncIterator[conformance.Pair]:
    """The very device that a box's own control connection goes through."""
    made: list[Any] = []

    async def recorded(*args: Any, **options: Any) -> Transport:
        made.append(await start_user(*args, **options))
        return made[-1]

    settings = replace(Settings.from_env(), vsock="user", spares=0).prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(birth, "start_user", recorded)
        async with serving(settings) as box:
            assert box.facts.vsock == "user"
            yield conformance.Pair(made[0], watched=[os.getpid(), made[0].pid], speed=BUSY)


@pytest.fixture(scope="module")
async def kernel(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[conformance.Pair]:
    """A second transport to a box on the kernel's device."""
    if lacking := kernel_available():
        pytest.skip(f"{lacking} scripts/test-kvm runs this half where there is one.")
    settings = replace(Settings.from_env(), vsock="kernel", spares=0).prepare()
    cids: list[int] = []

    async def recorded(box_dir: Path) -> Transport:
        transport = await open_kernel(box_dir)
        keep = transport.assigned
        transport.assigned = lambda cid: (cids.append(cid), keep(cid))[1]  # type: ignore[method-assign]
        return transport

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(birth, "open_kernel", recorded)
        async with serving(settings) as box:
            assert box.facts.vsock == "kernel"
            transport = await open_kernel(tmp_path_factory.mktemp("vsock"))
            transport.assigned(cids[0])
            yield conformance.Pair(transport, watched=[os.getpid()], speed=BUSY)
            await transport.aclose()


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.__name__)
async def test_user_transport(case: Callable[[conformance.Pair], Awaitable[None]], user: conformance.Pair) -> None:
    """Each case, through the user-space device."""
    await conformance.check(case, user)


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.__name__)
async def test_kernel_transport(
    case: Callable[[conformance.Pair], Awaitable[None]], kernel: conformance.Pair
) -> None:
    """Each case, through the host kernel's vhost-vsock."""
    await conformance.check(case, kernel)
