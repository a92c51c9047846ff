"""The default agent as a fork of a real PID 1: its rights, what it can reach, and what the policy says of it."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from voidbox_lab.box import Box, Boxes
from voidbox_lab.errors import UserError
from voidbox_lab.gateway import Gateway, StageSession, serving
from voidbox_lab.spec import Model, Policy

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

_SEARCH = """
import os, sys
pid = sys.argv[1]
needle = bytes(255 - b for b in bytes.fromhex(sys.argv[2]))  # inverted, or PID 1 would hold the request for this
needles = needle, needle.hex().encode(), needle[:16], needle[16:], b"voidbox_guest"
found = [0] * len(needles)
with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
    for line in maps:
        first, last = (int(n, 16) for n in line.split()[0].split("-"))
        if line.split()[1][0] == "r" and "[v" not in line:
            memory.seek(first)
            data = b""
            while len(data) < last - first and (more := memory.read(last - first - len(data))):
                data += more
            found = [n + data.count(needle) for n, needle in zip(found, needles)]
print(*found, *(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int)))
"""

_ASK = """```
grep -E '^(Name|Uid|Gid|Groups|NoNewPrivs):' /proc/$PPID/status
tr '\\0' ' ' < /proc/$PPID/cmdline; echo
cat /proc/$PPID/environ; ls /proc/$PPID/fd; head -c 1 /proc/$PPID/mem; cat /proc/$PPID/maps
cp /usr/bin/true /tmp/mine; /tmp/mine
cat /proc/self/cgroup; pwd
echo $PPID > /tmp/pid; mv /tmp/pid /tmp/agent; while test -e /tmp/agent; do sleep 0.1; done
```"""


@asynccontextmanager
async def gateway_at(path: Path, model: str) -> AsyncIterator[str]:
    """A gateway on a UNIX socket; gives the token for `model`."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        gateway = Gateway(lambda *_: None)
        async with serving(gateway, sock), gateway:
            yield gateway.register(StageSession("run-1", "analyst", Model.parse(model)))


async def test_a_fork_has_the_agents_rights_and_nothing_of_pid_1(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its uid, its Landlock, its cgroup, three pipes; closed to its own tools; and no copy of the box's secret,
    neither in it nor in PID 1: not its bytes, not its halves, not its hexadecimal digits."""
    known = secrets.token_bytes(32)
    monkeypatch.setattr("voidbox_lab.box.birth.secrets.token_bytes", lambda n: known if n == 32 else os.urandom(n))
    inverted = bytes(255 - b for b in known).hex()
    # Not tmp_path: a UNIX socket's name is short.
    path = Path(os.environ["XDG_RUNTIME_DIR"]) / "warm"
    async with (
        gateway_at(path, "scripted:shell") as token,
        await boxes.open(memory_mb=384, gateway_socket=path) as box,
    ):
        env = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8129", "ANTHROPIC_API_KEY": token}
        argv = ["lab-agent", "-p", "-", "--model", "scripted:shell"]
        async with await box.start_exec(argv, env=env, stdin=_ASK.encode(), timeout_s=90) as process:
            wait = "while ! test -e /tmp/agent; do sleep 0.1; done; cat /tmp/agent"
            pid = (await box.run(["sh", "-c", wait], timeout_s=60)).stdout.decode().strip()
            assert int(pid) == process.pid
            for searched in (pid, "1"):
                done = await box.run(["python3", "-c", _SEARCH, searched, inverted], user="root", timeout_s=60)
                *found, control = map(int, done.stdout.split()[:5])
                assert found == [0, 0, 0, 0], done.stderr
                assert control > 0, "the search finds what is there"
                if searched == pid:
                    descriptors = done.stdout.decode().split()[5:]
            await box.remove("/tmp/agent")
            out = b"".join([chunk async for chunk in process.stdout])
            assert (await process.wait()).code == 0
    path.unlink()
    # The fourth is the output of the tool that runs.
    assert len(descriptors) == 4
    assert all(d.startswith("pipe:") for d in descriptors)
    result = json.loads(out.splitlines()[-1])["result"]
    for line in (
        "Name:\tlab-agent",
        "Uid:\t1000\t1000\t1000\t1000",
        "Gid:\t1000\t1000\t1000\t1000",
        "NoNewPrivs:\t1",
    ):
        assert line in result
    assert "/usr/lib/voidbox/init.py" in result, "it is a fork of PID 1"
    assert result.count("Permission denied") == 5, result
    assert "0::/execs/x" in result
    assert "/workspace" in result


@pytest.mark.parametrize(
    ("commands", "why"),
    [
        (("sh",), "does not name /usr/bin/lab-agent"),
        (("lab-agent", "sh"), "is a script for /usr/bin/python3"),
        (("python3", "/usr/lib/"), "does not name /usr/bin/lab-agent"),
        (("lab-agent", "python3"), None),
        (("/usr/bin/",), None),
        (None, None),
    ],
)
async def test_the_allowlist_decides_as_for_any_program(
    box: Box, commands: tuple[str, ...] | None, why: str | None
) -> None:
    """A fork passes no rule that an execve would not have passed."""
    await box.apply(Policy(commands=commands))
    try:
        if why is None:
            assert (await box.run(["lab-agent", "--version"])).stdout.startswith(b"lab-agent ")
        else:
            with pytest.raises(UserError, match=why) as caught:
                await box.run(["lab-agent", "--version"])
            assert caught.value.cause == "denied"
    finally:
        await box.apply(Policy())


async def test_another_launcher_is_not_forked(boxes: Boxes) -> None:
    """What somebody put in its place is what runs."""
    async with await boxes.open(memory_mb=256) as box:
        script = "printf '#!/bin/sh\\necho mine $1\\n' > /usr/bin/lab-agent"
        assert (await box.run(["sh", "-c", script], user="root")).exit_code == 0
        with anyio.fail_after(60):
            assert (await box.run(["lab-agent", "x"])).stdout == b"mine x\n"
