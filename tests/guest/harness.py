"""Runs the guest agent as an ordinary process on one end of a socketpair, so that most tests need no VM."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from voidbox_lab.box.box import Box
from voidbox_lab.box.connection import Connection
from voidbox_lab.errors import BoxLost
from voidbox_lab.resources import data_dir
from voidbox_lab.spec import BoxFacts
from voidbox_lab.vsock import Stream

FACTS = BoxFacts(
    isolation="tcg", vsock="user", domain="vb-0000000000", image="sha256:none", memory_mb=128, vcpus=1, boot_s=0
)

# -I -S as in a box; the path order as in the image: agent and wire side by side.
_SERVE = """
import sys, os
sys.path[:0] = sys.argv[1:3]
from _socket import socket
from voidbox_guest import agent, kernel
early = []
exec(sys.argv[5])
kernel.become_subreaper()
sock = socket(fileno=int(sys.argv[3]))
def dial(port):
    from _socket import AF_UNIX, SOCK_STREAM
    out = socket(AF_UNIX, SOCK_STREAM)
    out.connect(sys.argv[4] + "/" + str(port))
    out.setblocking(False)
    return out
agent.Agent(sock, privileged=False, enforced=sys.argv[6] == "enforced", dial=dial).serve(None, early)
"""


def start_guest(
    directory: Path, patch: str = "", *, enforced: bool = False
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The host's end of the control connection, and the agent's process, which runs `patch` first.

    With `enforced` it binds commands by this host's Landlock and seccomp.
    """
    host, guest = socket.socketpair()
    wire = directory / "lib"
    wire.mkdir()
    (wire / "wire").symlink_to(Path(__file__).parents[2] / "voidbox_lab" / "wire")
    argv = [sys.executable, "-I", "-S", "-c", _SERVE, str(data_dir("guest")), str(wire), str(guest.fileno())]
    process = subprocess.Popen(
        [*argv, str(directory), patch, "enforced" if enforced else ""],
        pass_fds=[guest.fileno()],
        env={"LEAK": "1"},
    )
    guest.close()
    return host, process


@asynccontextmanager
async def connected(sock: socket.socket) -> AsyncIterator[Connection]:
    """A running `Connection` over `sock`; its calls fail when it ends, as a box's do."""
    connection = Connection(Stream(sock))

    async def run() -> None:
        reason = await connection.run()
        connection.fail(BoxLost(reason, cause="guest-agent-died"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield connection
        tasks.cancel_scope.cancel()
    connection.fail(BoxLost("test over"))


@asynccontextmanager
async def guest_box(directory: Path, patch: str = "", *, enforced: bool = False) -> AsyncIterator[Box]:
    """A `Box` whose guest is a process on this host."""
    sock, process = start_guest(directory, patch, enforced=enforced)
    try:
        async with connected(sock) as connection:

            async def close() -> None:
                return None

            yield Box(connection, FACTS, close)
        with anyio.fail_after(10):
            await anyio.to_thread.run_sync(process.wait)
        assert process.returncode == 0, "the agent ended badly"
    finally:
        process.kill()
        process.wait()


def descendants(pid: int) -> set[int]:
    """Every process below `pid`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}
