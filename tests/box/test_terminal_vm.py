"""Terminals in a real box: devices, users and policy are the box's own."""

from __future__ import annotations

import signal

import anyio
import pytest

from voidbox_lab.box import Box, Process, Pty
from voidbox_lab.errors import UserError
from voidbox_lab.spec import Policy

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

WAIT_S = 60


async def shell(box: Box, pty: Pty | None = None) -> Process:
    """An interactive shell whose prompt is ``READY>``, with the prompt shown."""
    process = await box.start_exec(
        ["bash", "--norc", "--noprofile", "--noediting"],
        env={"PS1": "READY>", "TERM": "xterm"},
        pty=pty or Pty(24, 80),
    )
    await until(process, b"READY>")
    return process


async def typed(process: Process, line: str) -> list[str]:
    """Type `line`; the lines it shows up to the next prompt, without the echo."""
    assert process.stdin is not None
    await process.stdin.send(line.encode() + b"\n")
    echo, *shown, prompt = (await until(process, b"READY>")).decode().split("\r\n")
    assert (echo, prompt) == (line, "READY>")
    return shown


async def until(process: Process, text: bytes) -> bytes:
    """What it shows up to `text`."""
    shown = b""
    with anyio.fail_after(WAIT_S):
        while text not in shown:
            shown += await process.stdout.receive()
    return shown


async def test_a_shell_on_a_terminal(box: Box) -> None:
    """A pts of the agent's own, of the size asked for and then of another; job control; the shell's exit code."""
    async with await shell(box, Pty(37, 113)) as process:
        (name,) = await typed(process, "tty")
        assert name.startswith("/dev/pts/")
        assert await typed(process, f"stat -c '%U %a' {name}; id -un") == ["agent 600", "agent"]
        assert await typed(process, "stty size") == ["37 113"]
        await process.resize(51, 203)
        assert await typed(process, "stty size; echo $LINES $COLUMNS") == ["51 203", "51 203"]
        assert await typed(process, f"echo mine >{name} && echo yours >/dev/tty") == ["mine", "yours"]
        assert process.stdin is not None
        await process.stdin.send(b"sleep 1000\n")
        await until(process, b"sleep 1000\r\n")
        await anyio.sleep(1)
        await process.stdin.send(b"\x03")
        await until(process, b"READY>")
        assert await typed(process, "echo $?") == [str(128 + signal.SIGINT)]
        await process.stdin.send(b"exit 7\n")
        with anyio.fail_after(WAIT_S):
            ended = await process.wait()
        assert (ended.code, ended.signal) == (7, None)


async def test_a_hang_up_kills_shell_and_jobs(box: Box) -> None:
    """Also one that has no ear for SIGHUP, in a session of its own."""
    async with await shell(box) as process:
        await typed(process, "trap '' HUP; setsid -f sleep 4321; sleep 4322 &")
    left = await box.run(["pgrep", "-a", "sleep"])
    assert b"432" not in left.stdout
    with pytest.raises(UserError) as caught:
        await box.stat(f"/proc/{process.pid}")
    assert caught.value.cause == "not-found"


async def test_policy_is_in_force_on_a_terminal(box: Box) -> None:
    """As for every command: allowlist, limits, no new privileges."""
    await box.apply(Policy(commands=("bash",)))
    try:
        with pytest.raises(UserError, match="does not name"):
            await box.start_exec(["cat"], pty=Pty())
        async with await shell(box) as process:
            (denied,) = await typed(process, "cat /etc/hostname")
            assert "ermission denied" in denied
            assert await typed(process, "ulimit -n") == ["1024"]
    finally:
        await box.apply(Policy())
    async with await shell(box) as process:
        assert await typed(process, "grep NoNewPrivs /proc/self/status | cut -f2") == ["1"]
