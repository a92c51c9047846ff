"""The console: nothing missed, nothing unbounded, nothing that could move a terminal's cursor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from voidbox_lab.errors import ProviderError
from voidbox_lab.machines.console import LOG_CAP, TAIL_CAP, Console

from . import guests

pytestmark = pytest.mark.anyio


@pytest.fixture
async def ends() -> list[None]:
    """One entry for each time the console said that its peer is gone."""
    return []


@pytest.fixture
async def console(tmp_path: Path, ends: list[None]) -> Iterator[Console]:  # type: ignore[misc]
    """A listening console."""
    console = Console(tmp_path / "console.log", tmp_path / "console.sock", lambda: ends.append(None))
    console.listen()
    yield console
    console.close()


def dial(tmp_path: Path) -> socket.socket:
    """What QEMU does."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(tmp_path / "console.sock"))
    return peer


async def until(condition: Callable[[], object]) -> None:
    """Wait for `condition`, at most 5 s."""
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.005)


async def test_output_arrives_in_log_and_tail(console: Console, tmp_path: Path, ends: list[None]) -> None:
    """And the far end's process id, which is this one's."""
    peer = dial(tmp_path)
    peer.sendall(b"hello\r\n")
    await until(lambda: console.tail() == "hello\n")
    assert (tmp_path / "console.log").read_bytes() == b"hello\r\n"
    assert (tmp_path / "console.log").stat().st_mode & 0o777 == 0o600
    assert console.pid == os.getpid()
    assert not (tmp_path / "console.sock").exists(), "one caller, then nobody can dial any more"
    assert not console.ended.is_set()
    peer.close()
    await until(console.ended.is_set)
    assert ends == [None]


SLOW_TO_END = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.close()
sys.stdin.read()
"""


async def test_a_closed_console_is_not_the_end_of_the_process(console: Console, tmp_path: Path) -> None:
    """QEMU closes its consoles first; who waits for its exit sees it, although nobody has reaped it."""
    command = [sys.executable, "-c", SLOW_TO_END, str(tmp_path / "console.sock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        await until(console.ended.is_set)
        assert console.peer_alive
        with anyio.move_on_after(0.05) as waiting:
            await console.wait_exit()
        assert waiting.cancelled_caught
        process.kill()
        with anyio.fail_after(5):
            await console.wait_exit()
        assert not console.peer_alive
        assert process.returncode is None, "a zombie still"


async def test_our_own_close_is_not_the_peers_end(console: Console, tmp_path: Path, ends: list[None]) -> None:
    """`on_end` means QEMU; closing twice is fine; the socket is gone and the log stays."""
    peer = dial(tmp_path)
    await until(console.connected.is_set)
    console.close()
    console.close()
    assert ends == []
    assert peer.recv(1) == b""
    assert [p.name for p in tmp_path.iterdir()] == ["console.log"]


async def test_a_flood_is_bounded_on_disk_and_in_memory(console: Console, tmp_path: Path) -> None:
    """Eight times the cap goes in; the log stays below it and ends with the last output."""
    peer = dial(tmp_path)
    line = b"flooding the console with line after line\n"

    def flood() -> None:
        for _ in range(8 * LOG_CAP // (len(line) * 100)):
            peer.sendall(line * 100)
        peer.sendall(b"the last words")
        peer.close()

    largest = 0
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, flood)
        while not console.ended.is_set():
            largest = max(largest, (tmp_path / "console.log").stat().st_size)
            await anyio.sleep(0.001)
    assert largest <= LOG_CAP + TAIL_CAP
    assert (tmp_path / "console.log").read_bytes().endswith(b"the last words")
    assert b"passed its cap" in (tmp_path / "console.log").read_bytes()
    assert len(console.tail(LOG_CAP)) <= TAIL_CAP


async def test_control_sequences_do_not_get_out(console: Console, tmp_path: Path) -> None:
    """Colours, cursor moves, titles, bells and broken UTF-8 from the guest are taken out of the text."""
    peer = dial(tmp_path)
    peer.sendall(b"\x1b[2J\x1b[31mred\x1b[0m \x1b]0;title\x07a\x08b\x00\tc\xff\x9b1m\n.")
    await until(lambda: console.tail().endswith("."))
    text = console.tail()
    assert text.startswith("red ab\tc")
    assert "title" not in text
    assert all(c.isprintable() or c in "\n\t" for c in text)
    peer.close()


async def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    """A path too long for a socket is one sentence, and leaves nothing open."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    before = guests.descriptors()
    with pytest.raises(ProviderError, match="cannot be opened"):
        Console(deep / "console.log", deep / "console.sock", lambda: None).listen()
    assert guests.descriptors() == before
