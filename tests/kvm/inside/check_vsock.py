"""The vsock conformance suite on the kernel's transport: the half that other machines skip."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from tests.kvm.inside.shared import SharedBox
from tests.vsock import conformance, guest_peer
from voidbox_lab.errors import LimitExceeded
from voidbox_lab.vsock import kernel_available, open_kernel

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

SPEED = 16.0
"""A box in here is emulated twice: so much less in bulk transfers."""
PEER_S = 900.0
"""The peer outlives all cases."""


@pytest.fixture(scope="module")
async def peer(shared: SharedBox) -> AsyncIterator[None]:
    """`guest_peer` serving in the box."""
    await shared.box.put(Path(guest_peer.__file__), "/workspace/guest_peer.py")
    # As root: agents have no sockets of this family.
    command = ["python3", "-u", "/workspace/guest_peer.py"]
    async with await shared.box.start_exec(command, user="root", cwd="/", timeout_s=PEER_S) as process:
        said = b""
        with anyio.fail_after(120):
            while b"LISTENING" not in said:
                said += await process.stdout.receive()
        yield


@pytest.fixture
async def pair(shared: SharedBox, peer: None, tmp_path: Path) -> AsyncIterator[conformance.Pair]:
    """A transport of our own to the box, beside the one that its control connection came by."""
    transport = await open_kernel(tmp_path)
    transport.assigned(shared.cid)
    yield conformance.Pair(transport, watched=[os.getpid()], speed=SPEED)
    await transport.aclose()


def test_kernel_vsock_is_available() -> None:
    """Nothing to complain of."""
    assert kernel_available() is None


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.__name__)
async def test_kernel_transport(
    case: Callable[[conformance.Pair], Awaitable[None]], pair: conformance.Pair
) -> None:
    """Each case."""
    await conformance.check(case, pair)


async def test_only_its_own_box_may_dial(shared: SharedBox, pair: conformance.Pair, tmp_path: Path) -> None:
    """Host ports are open to every guest; a listener takes only the one it is for."""
    transport = await open_kernel(tmp_path)
    transport.assigned(shared.cid + 1)
    listener = transport.listen()
    try:
        async with await pair.dial(guest_peer.DIAL) as control:
            await control.send(guest_peer.SIZE.pack(listener.port))
            with pytest.raises(LimitExceeded):
                await listener.accept(3)
    finally:
        listener.close()
        await transport.aclose()
