"""The conformance suite on the user-space device, driven by a fake guest: no VM."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from voidbox_lab.vsock import open_user

from . import conformance
from .fake_guest import FakeGuest

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["event-index", "flags", "split-header"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[conformance.Pair]:
    """A device process and a fake guest, with each way of suppressing notifications."""
    with tempfile.TemporaryDirectory(prefix="vb") as directory:
        transport = await open_user(Path(directory), cid=42)
        guest = await anyio.to_thread.run_sync(
            lambda: FakeGuest(
                Path(directory) / "vu",
                event_index=request.param != "flags",
                split_header=request.param == "split-header",
            )
        )
        try:
            assert guest.front.cid == 42
            yield conformance.Pair(transport, watched=[os.getpid(), transport.pid])
            assert guest.faults == []
        finally:
            await anyio.to_thread.run_sync(guest.close)
            with anyio.fail_after(5):
                assert await transport.wait_gone() == 0, "the device ends when its QEMU does"
            await transport.aclose()
        left = {path.name for path in Path(directory).iterdir()} - {"vsock.log", "target.sock"}
        assert not left
        assert (Path(directory) / "vsock.log").read_text() == ""


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.__name__)
async def test_user_transport(case: Callable[[conformance.Pair], Awaitable[None]], pair: conformance.Pair) -> None:
    """Each case, with the device's log empty and the guest without complaints afterwards."""
    await conformance.check(case, pair)
