"""vsock carried in user space: one device process per box, UNIX sockets on the host's side.

Needs no kernel module and no privilege. Not for the device itself: see `device`, `switch`.
Host side by Firecracker's convention, within the box's directory:

- ``vu``: the vhost-user socket, for QEMU;
- ``vs``: say ``CONNECT <port>\\n`` to reach the guest, hear ``OK <port>\\n``;
- ``vs_<port>``: what the guest reaches when it dials host `port`;
- ``vsock.log``: what the device had to say.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

import anyio
from anyio.lowlevel import checkpoint

import voidbox_lab
from voidbox_lab.errors import BoxLost, LimitExceeded, ProviderError, UserError
from voidbox_lab.vsock.doors import BUSY, REFUSED
from voidbox_lab.vsock.stream import Listener, Stream
from voidbox_lab.vsock.table import MAX_CONNECTIONS
from voidbox_lab.vsock.transport import ANY_PORT, PORT_MAX, VsockDevice

START_S = 20.0
"""Seconds the device process has to be ready; usually 0.1."""
STOP_S = 2.0
BACKLOG = 128
_PATH_MAX = 107  # unix(7)
_FIRST_PORT = 1 << 20
_LOG = "vsock.log"
_RETRY_S = 0.01
_DYING_S = 0.5
"""Seconds between the end of a dying process's sockets and its own."""

# -S and -I: site and the environment cost more than the device's own imports, and are not wanted.
DEVICE_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from voidbox_lab.vsock.device import main; sys.exit(main())"
)


class UserTransport:
    """See `Transport`. Made by `open_user`."""

    kind: Literal["kernel", "user"] = "user"

    def __init__(self, box_dir: Path, cid: int, process: subprocess.Popen[bytes]) -> None:
        self.box_dir = box_dir
        self.cid: int | None = cid
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._listeners: list[Listener] = []
        self._links: list[Path] = []
        self._next_port = _FIRST_PORT
        self._closed = False

    @property
    def pid(self) -> int:
        """The device's process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """The device process runs."""
        return not self._closed and self._process.poll() is None

    async def ready(self) -> None:
        """Wait until the device's sockets listen. On an error the transport is closed.

        Raises:
            ProviderError: the device did not start within `START_S` seconds (cause ``vsock-start``).
        """
        try:
            with anyio.move_on_after(START_S):
                if await _first_line(self._process) == b"ready\n":
                    return
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        last = (self.box_dir / _LOG).read_bytes()[-400:].decode(errors="replace").strip().rpartition("\n")[2]
        raise ProviderError(
            f"The vsock device did not start within {START_S:g} s; its last words: {last or 'none'}.",
            cause="vsock-start",
        )

    async def wait_gone(self) -> int:
        """Wait until the device process has ended; its exit code. 0: QEMU went first."""
        while (code := self._process.poll()) is None:
            await anyio.wait_readable(self._pidfd)
        return code

    def listen(self, port: int = ANY_PORT) -> Listener:
        """See `Transport.listen`."""
        port, path = self._claim(port)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            path.chmod(0o600)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise ProviderError(f"Host port {port} of the box cannot listen at {path}: {error}.") from error
        listener = Listener(sock, port, on_close=lambda: path.unlink(missing_ok=True))
        self._listeners.append(listener)
        return listener

    def forward(self, port: int, path: Path) -> int:
        """See `Transport.forward`. A symbolic link does it: connect(2) follows it."""
        port, link = self._claim(port)
        link.symlink_to(path.absolute())
        self._links.append(link)
        return port

    def _claim(self, port: int) -> tuple[int, Path]:
        if port == ANY_PORT:
            while os.path.lexists(self.box_dir / f"vs_{self._next_port}"):
                self._next_port += 1
            port = self._next_port
            self._next_port += 1
        if not 0 < port <= PORT_MAX:
            raise UserError(f"{port} is not a vsock port; use one from 1 to {PORT_MAX}, or 0 for a free one.")
        path = self.box_dir / f"vs_{port}"
        if os.path.lexists(path):
            raise UserError(f"Host port {port} of this box is taken ({path}); use another, or 0 for a free one.")
        return port, path

    async def connect(self, port: int, timeout_s: float) -> Stream:
        """See `Transport.connect`; also ProviderError with cause ``busy`` beyond `MAX_CONNECTIONS`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with anyio.fail_after(timeout_s):
                await checkpoint()  # the rest may need no pause, and a bound of 0 is a bound
                await self._connect(sock)
                await self._greet(sock, port)
        except TimeoutError:
            sock.close()
            raise LimitExceeded(
                f"The box did not answer on vsock port {port} within {timeout_s:g} s; look at its console log.",
                limit="time",
                value=timeout_s,
                unit="s",
                cause="connect-timeout",
            ) from None
        except OSError as error:
            sock.close()
            raise self._lost(error) from error
        except BaseException:
            sock.close()
            raise
        return Stream(sock)

    async def _connect(self, sock: socket.socket) -> None:
        while True:
            try:
                return sock.connect(str(self.box_dir / "vs"))
            except BlockingIOError:  # backlog full: AF_UNIX has no event for its end
                await anyio.sleep(_RETRY_S)

    async def _greet(self, sock: socket.socket, port: int) -> None:
        sock.send(b"CONNECT %d\n" % port)
        line = b""
        # Byte by byte: what follows the line belongs to the stream. It comes in one piece.
        while not line.endswith(b"\n") and len(line) < 32:
            try:
                byte = sock.recv(1)
            except BlockingIOError:
                await anyio.wait_readable(sock)
                continue
            if not byte:
                break
            line += byte
        if line == REFUSED:
            raise ProviderError(f"The box refused vsock port {port}; nothing listens there.", cause="refused")
        if line == BUSY:
            raise ProviderError(
                f"The box has {MAX_CONNECTIONS} vsock connections and takes no more; close some first.",
                cause="busy",
            )
        if not line.startswith(b"OK ") or not line.endswith(b"\n"):
            # Cut off without a word: the device is ending (its sockets go before its process), or the
            # guest's driver started anew.
            with anyio.move_on_after(_DYING_S):
                await self.wait_gone()
                raise self._lost(None)
            raise ProviderError(
                f"The guest's vsock driver restarted before it answered on port {port}; try again.", cause="reset"
            )

    def _lost(self, error: OSError | None) -> BoxLost:
        why = f" ({error})" if error is not None else ""
        return BoxLost(
            f"The vsock device of the box is gone{why}; see {self.box_dir / 'vsock.log'}.", cause="vsock-died"
        )

    def domain(self) -> VsockDevice:
        """See `Transport.domain`."""
        return VsockDevice(kind="user", socket=self.box_dir / "vu", cid=self.cid)

    async def aclose(self) -> None:
        """See `Transport.aclose`. The guest's vsock is dead afterwards: destroy the domain first."""
        if self._closed:
            return
        for listener in self._listeners:
            listener.close()
        for link in self._links:
            link.unlink(missing_ok=True)
        try:
            with anyio.CancelScope(shield=True):
                self._process.terminate()
                with anyio.move_on_after(STOP_S):
                    await self.wait_gone()
                if self._process.poll() is None:
                    self._process.kill()
                    with anyio.move_on_after(STOP_S):
                        await self.wait_gone()
        finally:
            self._closed = True
            os.close(self._pidfd)
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            for name in ("vu", "vs"):  # the device's own duty, unless it was killed
                with contextlib.suppress(OSError):
                    (self.box_dir / name).unlink()


async def open_user(box_dir: Path, *, cid: int = 3) -> UserTransport:
    """Start the device process of one box; its sockets listen when this returns.

    `cid`: the guest's; every user-space device is a world of its own, so boxes may share it. The
    process ends with its QEMU, or by itself when this process dies before a QEMU connected.

    Raises:
        UserError: `box_dir` is too long a path for UNIX sockets.
        ProviderError: the device did not start within `START_S` seconds.
    """
    transport = await start_user(box_dir, cid=cid)
    await transport.ready()
    return transport


async def start_user(box_dir: Path, *, cid: int = 3) -> UserTransport:
    """As `open_user`, without waiting: `UserTransport.ready` does, before a QEMU may connect."""
    longest = len(os.fsencode(box_dir / f"vs_{PORT_MAX}"))
    if longest > _PATH_MAX:
        raise UserError(
            f"The directory {box_dir} is too long a path for UNIX sockets ({longest} of {_PATH_MAX} bytes); "
            "set XDG_RUNTIME_DIR to a shorter one."
        )
    package = Path(voidbox_lab.__file__).parent.parent
    argv = [sys.executable, "-I", "-S", "-c", DEVICE_PROGRAM, str(package)]
    argv += ["--socket", str(box_dir / "vu"), "--host-socket", str(box_dir / "vs"), "--cid", str(cid)]
    with (box_dir / _LOG).open("ab") as errors:
        process = await anyio.to_thread.run_sync(_spawn, argv, errors.fileno())
    return UserTransport(box_dir, cid, process)


def _spawn(argv: list[str], errors: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd="/",
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )


async def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    fd, line = process.stdout.fileno(), b""
    while not line.endswith(b"\n"):
        await anyio.wait_readable(fd)
        part = os.read(fd, 64)
        if not part:
            break
        line += part
    return line
