"""What PID 1 does with its boot data, as far as it needs no box."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from voidbox_lab.resources import data_dir
from voidbox_lab.wire import frames as f
from voidbox_lab.wire.handshake import HostSide

_PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:3]
from _socket import socket
from voidbox_guest import boot
boot.BOOT_DATA = sys.argv[3]
data, secret = boot.read_boot_data()
assert "secret" not in data
boot.shake_hands(socket(fileno=int(sys.argv[4])), secret)
print(data["hostname"], secret.hex())
"""


def _guest(directory: Path, text: str, sock: socket.socket) -> subprocess.Popen[str]:
    (directory / "boot.json").write_text(text)
    (directory / "wire").symlink_to(Path(__file__).parents[2] / "voidbox_lab" / "wire")
    argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(data_dir("guest")), str(directory)]
    argv += [str(directory / "boot.json"), str(sock.fileno())]
    return subprocess.Popen(
        argv, pass_fds=[sock.fileno()], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_the_secret_proves_the_guest_and_is_wiped(tmp_path: Path) -> None:
    """The host accepts the guest that read it, and nothing is left in the array it was in."""
    secret = secrets.token_bytes(32)
    host, guest = socket.socketpair()
    host.settimeout(20)
    text = json.dumps({"version": 1, "secret": secret.hex(), "hostname": "vb-1"})
    with host, guest, _guest(tmp_path, text, guest) as process:
        side, decoder = HostSide(secret), f.Decoder()
        while not side.done:
            for frame in decoder.feed(host.recv(4096)):
                host.sendall(side.receive(frame))
        out, errors = process.communicate(timeout=20)
    assert out == f"vb-1 {'00' * 32}\n", errors


@pytest.mark.parametrize("secret", ["0" * 63, "0" * 65, "g" * 64, "", None])
def test_a_malformed_secret_is_refused(tmp_path: Path, secret: str | None) -> None:
    """64 hexadecimal digits, no more, no fewer."""
    host, guest = socket.socketpair()
    text = json.dumps({"version": 1, "secret": secret, "hostname": "h" * 100})
    with host, guest, _guest(tmp_path, text, guest) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Error" in errors.splitlines()[-1]
