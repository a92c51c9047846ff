"""Saving and restoring, without a domain: whose the descriptors are."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from voidbox_lab.machines import saving
from voidbox_lab.machines.machine import Machine

pytestmark = pytest.mark.anyio


async def test_a_restore_given_up_keeps_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread outlives the caller, who was cancelled, closed the state and opened another file instead."""
    for name in ("state", "other"):
        (tmp_path / name).write_text(name)
    release, done = threading.Event(), threading.Event()
    given: list[tuple[int, bytes]] = []

    def restore(_domain: object, state: int, _vsock: object, _timeout_s: float) -> None:
        release.wait(10)
        given.append((state, os.read(state, 100)))
        done.set()

    monkeypatch.setattr(saving, "restore", restore)
    machine = cast("Any", SimpleNamespace(_running_domain=None, spec=SimpleNamespace(vsock=None)))
    state = os.open(tmp_path / "state", os.O_RDONLY)
    with anyio.move_on_after(0.05) as scope:
        await Machine.restore(machine, state)
    assert scope.cancelled_caught
    os.close(state)
    other = os.open(tmp_path / "other", os.O_RDONLY)
    assert other == state, "the number is not used anew"
    release.set()
    assert await anyio.to_thread.run_sync(done.wait, 5)
    ((number, text),) = given
    assert text == b"state"
    os.close(other)
    with anyio.fail_after(5):
        while Path(f"/proc/self/fd/{number}").exists():
            await anyio.sleep(0.005)
