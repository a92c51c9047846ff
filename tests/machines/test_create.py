"""The order of things in the thread that the embedded driver forks QEMU from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from voidbox_lab.machines import hypervisor


@pytest.mark.parametrize("embedded", [True, False])
def test_libvirt_learns_of_an_upgraded_qemu_before_powers_go(
    embedded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt probes a QEMU whose binary has changed; without CAP_SETPCAP that fails, and so would each start.

    Seen with libvirt 9.0: "Failed to start QEMU binary for probing: cannot apply process capabilities".
    """
    did: list[str] = []
    handle = SimpleNamespace(
        getDomainCapabilities=lambda *_: did.append("ask"), createXML=lambda *_: did.append("create")
    )
    connection = SimpleNamespace(handle=handle, embedded=embedded, emulator=Path("/usr/bin/qemu"))
    monkeypatch.setattr(hypervisor, "renounce_for_children", lambda: did.append("renounce"))
    monkeypatch.setattr(hypervisor.reaper, "expect", lambda: None)
    hypervisor.Hypervisor._create(cast("Any", SimpleNamespace(_connection=connection)), "<domain/>", 0)
    assert did == (["ask", "renounce", "create"] if embedded else ["create"])
