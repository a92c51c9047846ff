"""The device as a process: how it starts, ends, and rests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from voidbox_lab.vsock import device as module

from . import guest_peer as peer
from .fake_guest import FakeGuest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vb") as name:
        yield Path(name)


def _start(directory: Path, *more: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "voidbox_lab.vsock.device", "--socket", str(directory / "vu"),
            "--host-socket", str(directory / "vs"), "--cid", "3", *more,
        ],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def _end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=10)
    return process.returncode, errors.decode()


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_sockets_are_private_and_gone_afterwards(directory: Path) -> None:
    process = _start(directory)
    assert {path.name: path.stat().st_mode & 0o077 for path in directory.iterdir()} == {"vu": 0, "vs": 0}
    process.send_signal(signal.SIGINT)  # a notebook's stop button reaches the whole group
    process.terminate()
    assert _end(process) == (0, "")
    assert list(directory.iterdir()) == []


def test_ends_when_nobody_connects(directory: Path) -> None:
    process = _start(directory, "--wait", "0.2")
    began = time.monotonic()
    process.wait(10)
    assert time.monotonic() - began < 5
    assert _end(process) == (1, "no QEMU connected in 0.2 s\n")


def test_ends_when_its_parent_dies_first(directory: Path) -> None:
    process = _start(directory)
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
    assert _end(process) == (1, "no QEMU connected: the parent is gone\n")


def test_outlives_its_parent_once_connected_and_ends_with_qemu(directory: Path) -> None:
    process = _start(directory)
    guest = FakeGuest(directory / "vu")
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
    time.sleep(0.2)
    assert process.poll() is None
    guest.close()
    assert _end(process) == (0, "")


def test_a_stale_socket_is_replaced(directory: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(directory / "vs"))
    stale.close()
    process = _start(directory)
    process.terminate()
    assert _end(process)[0] == 0


@pytest.mark.parametrize(
    "argv",
    [[], ["--socket", "a"], ["--socket", "a", "--host-socket", "b", "--cid", "x"], ["--cid", "3", "--what", "x"]],
)
def test_misuse_shows_the_usage(argv: list[str]) -> None:
    with pytest.raises(SystemExit, match="usage"):
        module.main(argv)


def test_a_host_cid_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--socket", "a", "--host-socket", "b", "--cid", "2"]) == 2
    assert "between 3 and" in capsys.readouterr().err


def test_loads_only_what_it_needs() -> None:
    """Start-up time is on the path of every box: nothing but the standard library, and little of that."""
    code = "import sys, voidbox_lab.vsock.device; print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]; {code}"],
                         capture_output=True, text=True, check=True).stdout.split()  # fmt: skip
    for heavy in ("asyncio", "anyio", "pydantic", "argparse", "dataclasses", "pathlib", "logging"):
        assert heavy not in out
    ours = {name for name in out if name.startswith("voidbox_lab")}
    assert all(
        name in ("voidbox_lab", "voidbox_lab.vsock") or name.startswith("voidbox_lab.vsock.") for name in ours
    )


def test_rests_with_stalled_and_abandoned_connections(directory: Path) -> None:
    """No work, no processor time: neither idle, nor with full pipes, nor with clients that hung up on them."""
    process = _start(directory)
    guest = FakeGuest(directory / "vu")
    clients = []
    for n in range(6):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(5)
        client.connect(str(directory / "vs"))
        client.sendall(b"CONNECT %d\n" % peer.STALL)
        assert client.recv(64).startswith(b"OK ")
        client.sendall(b"--")
        assert client.recv(2) == b"st"
        client.setblocking(False)
        try:
            while True:
                client.send(bytes(65536))
        except BlockingIOError:
            pass
        if n % 2:
            client.close()
        clients.append(client)
    time.sleep(0.3)
    before = _ticks(process.pid)
    time.sleep(1.0)
    assert _ticks(process.pid) - before <= 5 * os.sysconf("SC_CLK_TCK") // 100
    guest.close()
    assert _end(process) == (0, "")
    for client in clients:
        client.close()
