"""Why a box is gone, told from what is seen of it; and the sparse copy of its disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from voidbox_lab.box.trouble import clean, from_guest, lost
from voidbox_lab.errors import Cancelled, LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.machines import Gone
from voidbox_lab.machines.sparse import copy_sparse

INIT = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009"


@pytest.mark.parametrize(
    ("gone", "vsock", "cause"),
    [
        (Gone("panic", "Kernel panic - not syncing: sysrq triggered crash"), False, "guest-panic"),
        (Gone("panic", INIT), False, "guest-agent-died"),
        (Gone("shutdown", "voidbox-guest: fatal"), False, "guest-agent-died"),
        (Gone("killed", ""), False, "qemu-died"),
        (Gone("crashed", ""), False, "qemu-died"),
        (Gone("destroyed", ""), False, "qemu-died"),
        (None, False, "guest-agent-died"),
        (None, True, "vsock-died"),
    ],
)
def test_causes(gone: Gone | None, vsock: bool, cause: str) -> None:
    """The four causes of BoxLost."""
    assert lost("vb-0", "closed", gone, vsock_died=vsock).cause == cause


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not-found", UserError),
        ("denied", UserError),
        ("no-space", LimitExceeded),
        ("busy", LimitExceeded),
        ("cancelled", Cancelled),
        ("internal", ProviderError),
        ("\x1bmade up", ProviderError),
    ],
)
def test_each_code_has_its_kind(code: str, kind: type[VoidboxError]) -> None:
    """The guest's codes, and what it makes up."""
    error = from_guest("put", {"code": code, "message": "m"})
    assert isinstance(error, kind)
    if code == "no-space":
        assert error.to_dict()["limit"] == "disk"


def test_clean_is_one_printable_line() -> None:
    """Terminal codes, bidi overrides and newlines do not get through."""
    assert clean("a\x1b[2J\n\u202eb\tc") == "a [2J b c"
    assert len(clean("x" * 10_000)) == 500


def test_sparse_copy_keeps_bytes_and_holes(tmp_path: Path) -> None:
    """Same content, same size, hardly more blocks, private."""
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        file.seek(3 << 20)
        file.write(os.urandom(70_000))
        file.truncate(64 << 20)
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20
    assert target.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ProviderError) as caught:
        copy_sparse(source, target)
    assert caught.value.cause == "disk"
