"""Frames: what travels on the control connection, encoded and decoded apart from any I/O.

A frame is a 12-byte header in network byte order and a payload::

    version:u8  kind:u8  flags:u16  stream:u32  length:u32  payload[length]

Stream 0 belongs to the connection (handshake, goodbye); every other number is one request, chosen by the
host, strictly increasing, and ended by the guest's one REPLY. `flags` is the channel of DATA, END and
CREDIT, and the hardness of CANCEL. Each kind has its own bounds, checked on the header alone, before any
payload is buffered, so a hostile length costs nothing.

DATA is paid for with credit, counted per stream, channel and direction: a sender starts with `WINDOW` bytes
and gets more by CREDIT. That bounds memory on both sides and keeps a slow reader from blocking the others.
"""

from __future__ import annotations

from struct import Struct

VERSION = 1
HEADER = Struct("!BBHII")
HEADER_SIZE = HEADER.size

HELLO, CHALLENGE, PROOF, WELCOME, REJECT = 1, 2, 3, 4, 5
REQUEST, REPLY, EVENT, DATA, END, CANCEL, CREDIT, GOODBYE = 16, 17, 18, 19, 20, 21, 22, 23

MAX_DATA = 64 * 1024
"""Longest DATA payload, bytes."""
MAX_JSON = 256 * 1024
"""Longest REQUEST or REPLY payload, bytes."""
MAX_EVENT = 16 * 1024
"""Longest EVENT payload, bytes; events wait in queues, so they are kept small."""
WINDOW = 256 * 1024
"""Credit a sender of DATA starts with, and the most it may ever hold, bytes per stream and channel."""
MAX_CHANNEL = 2

# kind: (shortest payload, longest payload, largest flags, belongs to the connection)
_SHAPE = {
    HELLO: (34, 34, 0, True),
    CHALLENGE: (32, 32, 0, True),
    PROOF: (32, 32, 0, True),
    WELCOME: (32, 32, 0, True),
    REJECT: (1, 512, 0, True),
    REQUEST: (2, MAX_JSON, 0, False),
    REPLY: (2, MAX_JSON, 0, False),
    EVENT: (2, MAX_EVENT, 0, False),
    DATA: (1, MAX_DATA, MAX_CHANNEL, False),
    END: (0, 0, MAX_CHANNEL, False),
    CANCEL: (0, 0, 1, False),
    CREDIT: (4, 4, MAX_CHANNEL, False),
    GOODBYE: (0, 512, 0, True),
}


class WireError(Exception):
    """The peer broke the protocol; the connection must end. `code` is short and stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Frame:
    """One decoded frame; `payload` is immutable and within its kind's bounds."""

    __slots__ = ("flags", "kind", "payload", "stream")

    def __init__(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.kind, self.flags, self.stream, self.payload = kind, flags, stream, payload

    def __repr__(self) -> str:
        return f"Frame(kind={self.kind}, flags={self.flags}, stream={self.stream}, length={len(self.payload)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return (self.kind, self.flags, self.stream, self.payload) == (
            other.kind,
            other.flags,
            other.stream,
            other.payload,
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.flags, self.stream, self.payload))


def _check(version: int, kind: int, flags: int, stream: int, length: int) -> None:
    if version != VERSION:
        raise WireError("bad-version", f"frame version {version} is not {VERSION}")
    shape = _SHAPE.get(kind)
    if shape is None:
        raise WireError("bad-kind", f"frame kind {kind} is unknown")
    low, high, most_flags, connection = shape
    if not low <= length <= high:
        raise WireError("bad-length", f"a payload of {length} bytes is outside {low} to {high} for kind {kind}")
    if flags > most_flags:
        raise WireError("bad-flags", f"flags {flags} mean nothing for kind {kind}")
    if (stream == 0) is not connection:
        raise WireError("bad-stream", f"kind {kind} may not be sent on stream {stream}")


def encode(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """The bytes of one frame.

    Raises:
        WireError: the frame is one that `Decoder` would refuse.
    """
    return header(kind, stream, len(payload), flags) + payload


def header(kind: int, stream: int, length: int, flags: int = 0) -> bytes:
    """The 12 header bytes alone, for senders that pass the payload on without copying it."""
    _check(VERSION, kind, flags, stream, length)
    return HEADER.pack(VERSION, kind, flags, stream, length)


def encode_credit(stream: int, channel: int, count: int) -> bytes:
    """A CREDIT frame: the peer may send `count` more bytes of DATA on this stream and channel."""
    return encode(CREDIT, stream, count.to_bytes(4, "big"), channel)


class Decoder:
    """Turns bytes, however they were cut, into frames. Holds at most one frame's bytes between calls."""

    __slots__ = ("_buffer", "_error", "_need")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = HEADER_SIZE
        self._error: WireError | None = None

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame; at end of file anything but 0 means a cut-off peer."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take `data` in; return the frames that it completed.

        Raises:
            WireError: the stream is not this protocol. The frames before the fault are lost with it, and
                every later call raises the same error.
        """
        if self._error is not None:
            raise self._error
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        size, offset = len(buffer), 0
        try:
            while size - offset >= self._need:
                version, kind, flags, stream, length = HEADER.unpack_from(buffer, offset)
                _check(version, kind, flags, stream, length)
                end = offset + HEADER_SIZE + length
                if end > size:
                    self._need = HEADER_SIZE + length
                    break
                with memoryview(buffer) as view:
                    payload = bytes(view[offset + HEADER_SIZE : end])
                frames.append(Frame(kind, flags, stream, payload))
                offset, self._need = end, HEADER_SIZE
        except WireError as error:
            self._error = error
            buffer.clear()
            raise
        if offset:
            del buffer[:offset]
        return frames
