"""The policy by this host's own Landlock and seccomp, without a VM; what needs root is tried in a box."""

from __future__ import annotations

import ctypes
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.harness import connected, guest_box, start_guest
from voidbox_lab.box import Box
from voidbox_lab.box.process import Pty
from voidbox_lab.errors import UserError, VoidboxError
from voidbox_lab.spec import Policy

pytestmark = pytest.mark.anyio


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """Commands of this host, bound by the default policy."""
    # landlock_create_ruleset(2) with LANDLOCK_CREATE_RULESET_VERSION.
    if ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) < 1:
        pytest.skip("this host's kernel has no Landlock; tests/box/test_policy_vm.py asks a guest's")
    async with guest_box(tmp_path, enforced=True) as made:
        yield made


async def test_commands_and_calls_are_denied_and_told(box: Box, tmp_path: Path) -> None:
    """By whom, how often; and what is not denied is not told."""
    (tmp_path / "mine").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "mine").chmod(0o755)
    done = await box.run(
        ["sh", "-c", "for i in 1 2 3; do ./mine; done; cat mine; true | /bin/true"], cwd=str(tmp_path)
    )
    assert b"ran\n" not in done.stdout.splitlines(keepends=True)
    assert {(d.rule, d.program, d.subject) for d in done.denied} == {("commands", "sh", "./mine")}
    assert sum(d.count for d in done.denied) == 3
    calls = "import os\ntry: os.memfd_create('x')\nexcept PermissionError as e: print(e.errno)"
    done = await box.run(["python3", "-c", calls], cwd="/")
    assert done.stdout == b"1\n"
    assert [(d.rule, d.subject, d.count) for d in done.denied] == [("syscalls.memfd", "memfd_create", 1)]
    with pytest.raises(UserError, match="allowlist of this stage does not name"):
        await box.run([str(tmp_path / "mine")], cwd="/")


@pytest.mark.parametrize("pty", [None, Pty(24, 80)])
async def test_no_command_inherits_the_listener_of_another(box: Box, pty: Pty | None) -> None:
    """Whoever had it could answer in the supervisor's place. Twice over: closed by its flag, and by `spawn`."""
    async with await box.start_exec(["sh", "-c", "echo; read x"], cwd="/", stdin=True) as watched:
        assert await watched.stdout.receive() == b"\n"
        async with await box.start_exec(["ls", "/proc/self/fd"], cwd="/", pty=pty) as other:
            assert (await other.stdout.receive()).split() == [b"0", b"1", b"2", b"3"]  # 3: the directory ls reads
        guest = Path(f"/proc/{watched.pid}/stat").read_text().rpartition(")")[2].split()[1]
        said = {int(fd.name): fd.read_text() for fd in Path(f"/proc/{guest}/fdinfo").iterdir()}
        assert len(said) > 6
        assert not [fd for fd, text in said.items() if fd > 2 and not int(text.split()[3], 8) & os.O_CLOEXEC]


async def test_commands_keep_the_policy_they_began_with(box: Box, tmp_path: Path) -> None:
    """The next ones have the new one."""
    async with await box.start_exec(
        ["sh", "-c", "read x; ls / > /dev/null && echo yes"], cwd="/", stdin=True
    ) as old:
        await box.apply(Policy(commands=("sh",), write=("/tmp",)))
        assert old.stdin is not None
        await old.stdin.send(b"\n")
        assert await old.stdout.receive() == b"yes\n"
        assert [d async for d in old.denials()] == []
    done = await box.run(["sh", "-c", f"ls /; echo x > {tmp_path}/f && echo written"], cwd="/")
    assert done.stdout == (b"written\n" if str(tmp_path).startswith("/tmp/") else b"")
    assert {d.subject for d in done.denied} >= {"/usr/bin/ls"} or {d.subject for d in done.denied} >= {"/bin/ls"}


@pytest.mark.parametrize(
    "fields",
    [
        {"syscalls": ["no-such-group"]},
        {"syscalls": "ptrace"},
        {"read": ["relative"]},
        {"write": ["/a/../b"]},
        {"write": [1]},
        {"places": ["/x\0"]},
        {"caps": {"pids": -1}},
        {"caps": {"memory_mb": True}},
        {"caps": {"cpus": "1"}},
        {"caps": {"other": 1}},
        {"caps": []},
    ],
)
async def test_a_policy_that_is_none_changes_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Each field is checked before any is in force."""
    sock, process = start_guest(tmp_path)
    try:
        async with connected(sock) as connection:
            with pytest.raises(VoidboxError, match=r"must|does not know"):
                await connection.request("policy", **fields)
            assert await connection.request("policy") == {"landlock": 0, "seccomp": False}
    finally:
        process.kill()
        process.wait()
