"""vhost-user messages: numbers, layout, and a reader that keeps file descriptors with their message.

Not for what they do: see `backend`. Source: "Vhost-user Protocol" in QEMU's interoperability
documents; all integers are little-endian as the front-end's host.
"""

from __future__ import annotations

import array
import os
import socket
import struct

HEADER = struct.Struct("<III")
"""request, flags, size of the payload."""
VERSION, REPLY, NEED_REPLY = 1, 4, 8
_VERSION_MASK = 3

GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
GET_CONFIG, SET_CONFIG = 24, 25

F_PROTOCOL_FEATURES = 1 << 30
F_EVENT_INDEX = 1 << 29
F_VERSION_1 = 1 << 32
P_REPLY_ACK = 1 << 3
P_CONFIG = 1 << 9

NO_FD = 1 << 8
"""In the payload of SET_VRING_KICK, CALL and ERR: no descriptor comes with it."""

MAX_PAYLOAD = 4096
MAX_FDS = 8

U64 = struct.Struct("<Q")
VRING = struct.Struct("<II")
VRING_ADDR = struct.Struct("<IIQQQQ")
"""index, flags, descriptors, used, available, log: note used before available."""
MEM_HEADER = struct.Struct("<II")
MEM_REGION = struct.Struct("<QQQQ")
"""guest physical address, size, user address, offset in the file."""
CONFIG = struct.Struct("<III")
"""offset, size, flags; then `size` bytes."""


class ProtocolError(Exception):
    """The front-end sent what the protocol does not allow; the connection cannot go on."""


class Message:
    """One request. `fds` not taken by the time of `close` are closed with it."""

    __slots__ = ("fds", "flags", "payload", "request")

    def __init__(self, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        self.request, self.flags, self.payload, self.fds = request, flags, payload, fds

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The payload's first fields.

        Raises:
            ProtocolError: it is shorter than `layout`.
        """
        if len(self.payload) < layout.size:
            raise ProtocolError(f"request {self.request} has a payload of {len(self.payload)} bytes")
        return layout.unpack_from(self.payload)

    def take_fd(self) -> int | None:
        """The next descriptor, now the caller's; None if none (is left)."""
        return self.fds.pop(0) if self.fds else None

    def close(self) -> None:
        """Close the descriptors nobody took."""
        while self.fds:
            os.close(self.fds.pop())


def encode(request: int, payload: bytes, flags: int = VERSION) -> bytes:
    """A message with its header."""
    return HEADER.pack(request, flags, len(payload)) + payload


def reply(request: int, payload: bytes) -> bytes:
    """The answer to `request`."""
    return encode(request, payload, VERSION | REPLY)


class Reader:
    """Reads messages from a non-blocking UNIX socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = bytearray()
        self._fds: list[int] = []

    def receive(self) -> Message | None:
        """One message; None if it has not wholly arrived.

        Raises:
            ProtocolError: malformed, too long, or too many descriptors.
            EOFError: the front-end is gone.
        """
        # Never a byte past this message: descriptors come with the first byte of theirs.
        if len(self._data) < HEADER.size and not self._fill(HEADER.size):
            return None
        request, flags, size = HEADER.unpack_from(self._data)
        if flags & _VERSION_MASK != VERSION or flags & REPLY or size > MAX_PAYLOAD:
            raise ProtocolError(f"request {request} with flags {flags:#x} and {size} bytes of payload")
        if not self._fill(HEADER.size + size):
            return None
        message = Message(request, flags, bytes(self._data[HEADER.size :]), self._fds)
        self._data.clear()
        self._fds = []
        return message

    def _fill(self, size: int) -> bool:
        while len(self._data) < size:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    size - len(self._data), socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return False
            except OSError:
                raise EOFError from None
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(raw[: len(raw) - len(raw) % 4])
                    self._fds += fds
            if not data:
                raise EOFError
            self._data += data
            if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
                raise ProtocolError("more descriptors than a message may carry")
        return True

    def close(self) -> None:
        """Close the descriptors of a message that never became whole."""
        while self._fds:
            os.close(self._fds.pop())
