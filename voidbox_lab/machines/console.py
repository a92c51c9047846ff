"""The guest's serial console, received over a UNIX socket and kept within a cap. Not for talking to the guest.

QEMU dials the socket when it starts, so nothing is missed, and what a guest floods us with is dropped here
instead of filling the host's disk: the log file never exceeds `LOG_CAP` and memory never `TAIL_CAP`. When
this process dies the peer is gone and QEMU throws further output away.

The socket's far end is also the surest sign of life of a QEMU: it closes when the process ends, however it ends.
A moment before, in fact: who needs the process to be gone, and its files closed, asks for its exit.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio

from voidbox_lab.errors import ProviderError

LOG_CAP = 1 << 20
"""Bytes of console log on disk; beyond it the file starts again with the last `TAIL_CAP`."""
TAIL_CAP = 64 << 10
"""Bytes of output kept in memory."""
_CHUNK = 64 << 10

# ECMA-48 control sequences (CSI ... final byte), operating system commands (OSC ... BEL), then lone controls.
_CONTROL = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class Console:
    """One machine's console. Create and use it on the asyncio thread."""

    def __init__(self, log: Path, path: Path, on_end: Callable[[], None]) -> None:
        """`on_end` is called once, when the far end closes; not by `close`."""
        self._log, self._path, self._on_end = log, path, on_end
        self._loop = asyncio.get_running_loop()
        self._tail = bytearray()
        self._written = 0
        self._file = -1
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self.connected = anyio.Event()
        self.ended = anyio.Event()
        """QEMU closed its end, or `close` was called."""
        self._awaited: dict[bytes, anyio.Event] = {}
        self.pid: int | None = None
        """The process that dialled: QEMU (SO_PEERCRED, unix(7))."""
        self._process = -1
        self._exited = anyio.Event()

    @property
    def peer_alive(self) -> bool:
        """Whether the process that dialled is seen to be there still; as a zombie it is not."""
        return self._process >= 0

    async def wait_exit(self) -> None:
        """Wait, without bound, while `peer_alive`."""
        if self.peer_alive:
            await self._exited.wait()

    def listen(self) -> None:
        """Open log and socket.

        Raises:
            ProviderError: the directory is missing or full, or the path too long for a socket.
        """
        try:
            self._file = os.open(
                self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600
            )
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._path.unlink(missing_ok=True)
            self._listener.bind(str(self._path))
            self._listener.listen(1)
        except OSError as error:
            self.close()
            raise ProviderError(f"The console {self._path} cannot be opened: {error}.") from error
        self._loop.add_reader(self._listener, self._accept)

    def said(self, line: str) -> anyio.Event:
        """Set once `line` was on the console. A guest can fake it: believe only one of your own."""
        marker = line.encode()
        event = self._awaited.setdefault(marker, anyio.Event())
        if marker in self._tail:
            event.set()
        return event

    def tail(self, size: int = 4096) -> str:
        """The last `size` bytes of output as text without control characters (newline and tab stay)."""
        return _CONTROL.sub("", self._tail[-size:].decode(errors="replace").replace("\r\n", "\n"))

    def close(self) -> None:
        """Stop receiving and remove the socket; the log stays. Idempotent."""
        self._drop_listener()
        self._hang_up()
        self._let_go()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            self._peer, _ = self._listener.accept()
        except OSError:
            return  # whoever dialled is gone again; wait for the next
        self._peer.setblocking(False)
        credentials = self._peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid = struct.unpack("3i", credentials)[0] or None
        self._drop_listener()
        if self.pid is not None:
            with suppress(OSError):  # it may be gone again; the socket tells
                self._process = os.pidfd_open(self.pid)
                self._loop.add_reader(self._process, self._let_go)
        self._loop.add_reader(self._peer, self._receive)
        self.connected.set()

    def _receive(self) -> None:
        assert self._peer is not None
        try:
            data = self._peer.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            self._on_end()
            return
        self._tail += data
        for marker, event in self._awaited.items():
            if not event.is_set() and self._tail.find(marker, -len(data) - len(marker)) >= 0:
                event.set()
        del self._tail[:-TAIL_CAP]
        if self._written + len(data) > LOG_CAP:
            data = b"[the console log passed its cap; it goes on with the last output]\n" + bytes(self._tail)
            with suppress(OSError):
                os.ftruncate(self._file, 0)
            self._written = 0
        # A full disk costs lines of the log, never the machine.
        with suppress(OSError):
            self._written += os.write(self._file, data)

    def _drop_listener(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if self._process >= 0:
            self._loop.remove_reader(self._process)
            os.close(self._process)
            self._process = -1
            self._exited.set()

    def _hang_up(self) -> None:
        if self._peer is not None:
            self._loop.remove_reader(self._peer)
            self._peer.close()
            self._peer = None
        self.ended.set()
