"""The process of one user-space vsock device: ``python -m voidbox_lab.vsock.device``.

It serves one QEMU (its first connection) and one guest, and ends by itself: when QEMU disconnects,
when none connects within `--wait` seconds, or when standard input closes before one did (its parent
died). It prints ``ready`` when both sockets listen. Standard library only, for a start of tens of
milliseconds. Not for use from Python: see `voidbox_lab.vsock.open_user`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time

from voidbox_lab.vsock.backend import Backend
from voidbox_lab.vsock.poller import HUP, IN, Poller
from voidbox_lab.vsock.switch import Switch
from voidbox_lab.vsock.table import MAX_CONNECTIONS

USAGE = "usage: python -m voidbox_lab.vsock.device --socket PATH --host-socket PATH --cid N [--wait S]"
WAIT_S = 60.0
"""Seconds in which QEMU has to connect."""
BACKLOG = 256
_LOG_LINES = 200


class _Exit(Exception):
    """A signal asked for the end."""


class Device:
    """Two listening sockets, then one front-end served until it is gone."""

    def __init__(self, *, vhost_socket: str, host_socket: str, cid: int) -> None:
        self._paths: list[str] = []
        self._log_left = _LOG_LINES
        self.poller = Poller()
        self._front = self._bind(vhost_socket, 1)
        self.switch = Switch(self.poller, cid=cid, path=host_socket, listener=self._bind(host_socket, BACKLOG))
        self.backend: Backend | None = None
        self.orphaned = False
        self.poller.add(self._front, IN, self._connected)

    def _bind(self, path: str, backlog: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - pathlib costs start-up time
        sock.bind(path)
        self._paths.append(path)
        sock.listen(backlog)
        return sock

    def _connected(self, _events: int) -> None:
        try:
            sock, _ = self._front.accept()
        except OSError:
            return
        # One device, one QEMU: whatever state there is, it is of one guest.
        self.poller.discard(self._front)
        self.backend = Backend(self.poller, sock, self.switch, self.log)

    def watch(self, fd: int) -> None:
        """End when `fd` closes before a QEMU has connected."""

        def closed(events: int) -> None:
            if events & HUP or not os.read(fd, 64):
                self.poller.remove(fd)
                self.orphaned = True

        with contextlib.suppress(OSError):  # a plain file or /dev/null cannot be watched, and never closes
            self.poller.add(fd, IN, closed)

    def log(self, line: str) -> None:
        """One line to standard error; a guest cannot fill a disk with them."""
        if self._log_left > 0:
            self._log_left -= 1
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - a process of its own, its log

    def wait_for_front_end(self, wait_s: float) -> bool:
        """True when a QEMU connected, False when none did in `wait_s` seconds or nobody would care."""
        end = time.monotonic() + wait_s
        while self.backend is None:
            left = end - time.monotonic()
            if left <= 0 or self.orphaned:
                return False
            self.poller.wait(min(left, self.switch.timeout() or left))
            self.switch.expire()
        return True

    def run(self) -> None:
        """Serve until the front-end is gone."""
        backend, switch, poller = self.backend, self.switch, self.poller
        more = False
        while backend is not None and not backend.done:
            timeout = switch.timeout()
            poller.wait(0 if more else timeout)
            if timeout is not None:
                switch.expire()
            more = backend.turn()
            poller.sweep()

    def close(self) -> None:
        """Close everything and remove the sockets' names."""
        if self.backend is not None and not self.backend.done:
            self.backend.close()
        self.switch.close()
        self.poller.discard(self._front)
        self.poller.close()
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 - pathlib costs start-up time


def _harden() -> None:
    """No core dumps (guest memory is mapped here), room for descriptors, files private to the user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wanted = 2 * MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        room = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))
    os.umask(0o077)


def _arguments(argv: list[str]) -> dict[str, str]:
    # argparse alone would double the start-up time.
    options = dict(zip(argv[::2], argv[1::2], strict=False))
    if len(argv) % 2 or not {"--socket", "--host-socket", "--cid"} <= options.keys() <= _OPTIONS:
        raise SystemExit(USAGE)
    return options


_OPTIONS = {"--socket", "--host-socket", "--cid", "--wait"}


def main(argv: list[str] | None = None) -> int:
    """Run the device; 0 after a front-end came and went, 1 when none came, 2 for a misuse."""
    options = _arguments(sys.argv[1:] if argv is None else argv)
    try:
        cid, wait_s = int(options["--cid"]), float(options.get("--wait", WAIT_S))
    except ValueError:
        raise SystemExit(USAGE) from None
    if not 2 < cid < 0xFFFFFFFF:
        print(f"A guest's CID lies between 3 and 4294967294, not {cid}.", file=sys.stderr)  # noqa: T201
        return 2

    def stop(_signal: int, _frame: object) -> None:
        raise _Exit

    _harden()
    try:
        device = Device(vhost_socket=options["--socket"], host_socket=options["--host-socket"], cid=cid)
    except OSError as error:
        print(f"The vsock device cannot listen: {error}", file=sys.stderr)  # noqa: T201
        return 1
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a stop button is for the notebook, not for the box
    try:
        device.watch(0)
        print("ready", flush=True)  # noqa: T201 - the parent waits for it
        if not device.wait_for_front_end(wait_s):
            device.log("no QEMU connected" + (": the parent is gone" if device.orphaned else f" in {wait_s:g} s"))
            return 1
        device.run()
        return 0
    except _Exit:
        return 0
    finally:
        device.close()


if __name__ == "__main__":
    sys.exit(main())
