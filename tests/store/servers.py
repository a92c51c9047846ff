"""A real Valkey or Redis server for tests: on a socket or a port, durable, killed and started again at will."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

READY_S = 20.0


def binary() -> str:
    """The server's binary; without one the test is skipped, or has failed where boxes are required."""
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    why = "no valkey-server or redis-server on this machine; install the package 'redis-server'"
    if os.environ.get("VOIDBOX_REQUIRE_VM") == "1":
        pytest.fail(why)
    pytest.skip(why)


class Server:
    """A server with a directory of its own. `start` it, `close` it at the end."""

    def __init__(self, *, password: str = "", port: int = 0, append_only: bool = True) -> None:
        self.binary = binary()
        # Short, for sockaddr_un.
        self.home = Path(tempfile.mkdtemp(prefix="vbs-", dir="/tmp"))
        self.socket = self.home / "s"
        self.port = port
        self._options = ["--appendonly", "yes" if append_only else "no", "--save", ""]
        # With everysec a write may wait for an fsync that is under way, and be lost by a kill -9.
        self._options += ["--appendfsync", "always"]
        if password:
            self._options += ["--requirepass", password]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.socket}"

    def start(self) -> None:
        listen = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        command = [self.binary, *listen, "--dir", str(self.home), "--logfile", "log", *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            assert self._process.poll() is None, (self.home / "log").read_text()
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.socket))
                    return
                except OSError:
                    time.sleep(0.02)
        raise AssertionError(f"{self.binary} is not up after {READY_S:g} s")

    def signal(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(10)
            self.socket.unlink(missing_ok=True)

    def close(self) -> None:
        if self._process and self._process.poll() is None:
            self.signal(signal.SIGKILL)
        shutil.rmtree(self.home)
