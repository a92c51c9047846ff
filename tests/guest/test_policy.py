"""The policy by this host's own Landlock and seccomp, without a VM; what needs root is tried in a box."""

from __future__ import annotations

import ctypes
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
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
    calls = "import socket\nfor make, how in ((socket.socket, (2, 1, 262)), (socket.socketpair, (30, 1)), "
    calls += "(socket.socket, (2, 5))):\n try: make(*how)\n except PermissionError as e: print(e.errno)"
    done = await box.run(["python3", "-c", calls], cwd="/")
    assert done.stdout == b"1\n" * 3
    assert {d.rule for d in done.denied} == {"syscalls.packet-sockets"}
    assert [d.subject for d in done.denied] == [
        *("socket of protocol 262", "socketpair(AF_30)", "socket of an unusual type"),
    ]
    with pytest.raises(UserError, match="allowlist of this stage does not name"):
        await box.run([str(tmp_path / "mine")], cwd="/")


LOADER = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}[os.uname().machine]


async def attempts(box: Box, tries: list[str], cwd: Path) -> dict[str, str]:
    """What each of these commands of bash writes."""
    done = await box.run(["bash", "-c", "; ".join(f"echo @{n}; {t}" for n, t in enumerate(tries))], cwd=str(cwd))
    said = done.stdout.decode().split("@")[1:]
    assert len(said) == len(tries)
    return {t: text.partition("\n")[2].strip() for t, text in zip(tries, said, strict=True)}


async def test_the_loader_runs_nothing_that_is_not_listed(box: Box, tmp_path: Path) -> None:
    """However it is called: Landlock must let it be executed, so that nobody but the supervisor is in the way."""
    directory, name = os.path.split(LOADER)
    for link, target in {"me": "/proc/self", "here": "me/cwd", "nine": "/dev/fd/9", "loader": LOADER}.items():
        (tmp_path / link).symlink_to(target)
    await box.apply(Policy(commands=("bash",)))
    ways = (
        *(LOADER, "./loader", f"/proc/self/cwd/{tmp_path.as_posix()[1:]}/../../../../../../{LOADER}"),
        *("/dev/fd/9", "/proc/self/fd/9", "/proc/thread-self/fd/9", "/proc/$$/fd/9", "./nine", "me/fd/9"),
    )
    tries = [f"exec 9<{LOADER}; {way} /usr/bin/id" for way in ways]
    tries += [
        f"cd {directory}; {way} /usr/bin/id"
        for way in (
            *(f"/proc/self/cwd/{name}", f"/proc/thread-self/cwd/{name}", f"/proc/$$/cwd/{name}"),
            *(f"{tmp_path}/here/{name}", f"{tmp_path}/me/cwd/{name}", "./" * ((4090 - len(name)) // 2) + name),
        )
    ]
    said = await attempts(box, tries, tmp_path)
    assert set(said.values()) == {""}, said


async def test_a_listed_loader_runs_what_is_listed(box: Box, tmp_path: Path) -> None:
    """And nothing where it cannot be told what it would run."""
    (tmp_path / "id").symlink_to("/bin/bash")
    (tmp_path / "--x").symlink_to("/usr/bin/id")
    await box.apply(Policy(commands=("bash", LOADER)))
    tries = [
        f"{LOADER} {arguments}"
        for arguments in (
            *("/usr/bin/id", "--inhibit-cache " * 15 + "/usr/bin/id", "--inhibit-cache " * 14 + "/usr/bin/id"),
            *("--library-path /usr/bin id", "--argv0 /bin/bash /usr/bin/id", "--no-such /bin/bash /usr/bin/id"),
            *("-- ./--x /bin/bash", "./--x", "/dev/stdin < /usr/bin/id", "", "--argv0", "/no/such"),
        )
    ]
    tries += [f"cd /usr/bin; {LOADER} {way}id" for way in ("/proc/self/cwd/", "./", "")]
    said = await attempts(box, tries, tmp_path)
    assert set(said.values()) == {""}, said
    tries = [f"{LOADER} {way}/bin/bash -c 'echo ran'" for way in ("", "--argv0 x ", "/proc/self/root", "--list ")]
    said = await attempts(box, tries, tmp_path)
    assert list(said.values())[:3] == ["ran"] * 3
    assert "libc.so" in list(said.values())[3]
    done = await box.run(["bash", "-c", f"{LOADER} {LOADER} /usr/bin/id"], cwd="/")
    assert ["would run anything" in denied.message for denied in done.denied] == [True]


async def test_scripts_are_what_interprets_them(box: Box, tmp_path: Path) -> None:
    """To the last of a chain, and read as the kernel reads them, where the agent may write programs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "bash").symlink_to("/bin/bash")
    (tools / "bash\v").symlink_to(LOADER)
    heads = {
        "plain": "#!/usr/bin/echo",
        "loaded": f"#!{LOADER} /usr/bin/echo",
        "relative": "#!./loader /usr/bin/echo",
        "own": "#!/proc/self/cwd/loader /usr/bin/echo",
        "chain": f"#!{tools}/loaded",
        "odd": f"#!{tools}/bash\v /usr/bin/echo",
        "nul": "#!/usr/bin/echo\0y",
        "absent": "#!/no/such",
    }
    (tmp_path / "loader").symlink_to(LOADER)
    for name, head in {**heads, "good": "#! /bin/bash \necho ran", "better": f"#!{tools}/good"}.items():
        (tools / name).write_text(head + "\n")
        (tools / name).chmod(0o755)
    await box.apply(Policy(commands=("bash", "rm", LOADER, f"{tools}/")))
    said = await attempts(box, [f"tools/{name}" for name in heads], tmp_path)
    assert set(said.values()) == {""}, said
    said = await attempts(box, ["tools/good", "tools/better"], tmp_path)
    assert set(said.values()) == {"ran"}
    gone = await attempts(box, [f"exec 9<{tools}/loaded; rm {tools}/loaded; /dev/fd/9"], tmp_path)
    assert set(gone.values()) == {""}
    for name, why in {"nul": "is a script for /usr/bin/echo, which", "odd": "is the dynamic loader"}.items():
        with pytest.raises(UserError, match=why):
            await box.run([f"{tools}/{name}"], cwd="/")


async def test_names_that_are_no_text_cost_one_command(box: Box, tmp_path: Path) -> None:
    """The refusal names the file, whatever bytes its name is of, and the box goes on."""
    program = os.fsencode(tmp_path) + b"/\xff\x1b[31m"
    Path(os.fsdecode(program)).write_bytes(b"#!/bin/sh\n")
    Path(os.fsdecode(program)).chmod(0o755)
    (tmp_path / "link").symlink_to(os.fsdecode(program))
    with pytest.raises(UserError, match=r"does not name .*/\ufffd\ufffd\[31m"):
        await box.run([f"{tmp_path}/link"], cwd="/")
    assert (await box.run(["true"], cwd="/")).exit_code == 0


async def test_what_is_listed_may_execute_itself(box: Box, tmp_path: Path) -> None:
    """Many a program runs /proc/self/exe, and fexecve(3) what is open: to the supervisor that is the caller's."""
    (tmp_path / "again").symlink_to("/proc/self/exe")
    await box.apply(Policy(commands=("bash",)))
    ways = ("/proc/self/exe", "/proc/thread-self/exe", "/proc/$$/exe", "./again", "/dev/fd/9", "/proc/self/fd/9")
    said = await attempts(box, [f"exec 9</bin/bash; {way} -c 'echo again'" for way in ways], tmp_path)
    assert set(said.values()) == {"again"}, said


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


async def test_telemetry_does_not_hasten_a_flood_of_denials(box: Box) -> None:
    """It looks at what commands hit, which is told at the pace of all denials; every one is counted in the end.

    The call is pidfd_getfd(2), whose number is the same everywhere; each is by another name of program."""
    flood = "import ctypes, os, time\nlibc = ctypes.CDLL(None)\nn, end = 0, time.monotonic() + 2\n"
    flood += "while time.monotonic() < end: libc.prctl(15, b'%d' % n); libc.syscall(438, 0); n += 1\nprint(n)"

    async def watch() -> None:
        async for _ in box.telemetry(0.2):
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        done = await box.run(["python3", "-c", flood], cwd="/")
        tasks.cancel_scope.cancel()
    assert sum(denied.count for denied in done.denied) == int(done.stdout)
    assert len(done.denied) < 110


@pytest.mark.parametrize("field", ["commands", "read", "write"])
async def test_a_link_of_an_agents_does_not_change_what_a_policy_names(
    box: Box, tmp_path: Path, field: str
) -> None:
    """It may have been laid in another box, on a volume: so no link at all below where agents write."""
    (tmp_path / "real").mkdir()
    (tmp_path / "up").symlink_to("real")
    (tmp_path / "real" / "bin").symlink_to("/usr/bin")
    for path in ("real/bin", "up", "up/bin"):
        with pytest.raises(UserError, match=r"a symbolic link leads to /\S+; name what is meant"):
            await box.apply(_policy(field, tmp_path / path))
    await box.apply(_policy(field, tmp_path / "real"))
    await box.apply(_policy(field, Path("/bin" if field == "commands" else "/lib64")))


def _policy(field: str, path: Path) -> Policy:
    return Policy.model_validate({field: ("sh", f"{path}/") if field == "commands" else (str(path),)})


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
        {"write": ["/x\0"]},
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
