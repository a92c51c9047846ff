"""Mutual proof that both ends know the box's 32-byte secret; pure state, no I/O.

::

    guest                                   host
    HELLO      protocol:u16, nonce_g[32] ──▶
               ◀── nonce_h[32]              CHALLENGE
    PROOF      MAC("vb-guest")           ──▶
               ◀── MAC("vb-host")           WELCOME

MAC is BLAKE2s (RFC 7693) keyed with the secret, personalised by the role, over the protocol number and both
nonces: the roles differ, so nothing can be reflected, and both nonces are fresh, so nothing can be replayed.
The guest proves itself first; the host proves itself because on the kernel's AF_VSOCK any local user may
listen on a port. Either side answers a fault with REJECT (code and one sentence) and ends the connection.

Not for secrecy: nothing is encrypted, the channel is the hypervisor's.
"""

from __future__ import annotations

from _operator import _compare_digest as compare_digest
from os import urandom

from .frames import CHALLENGE, HELLO, PROOF, REJECT, WELCOME, Frame, encode

try:  # the C module itself: hashlib would load OpenSSL, 0.1 s in an emulated guest
    from _blake2 import blake2s
except ImportError:  # pragma: no cover - interpreters other than CPython
    from hashlib import blake2s

PROTOCOL = 1
"""Version of everything above the frame header: operations, fields, rules of streams."""

NONCE_SIZE = 32
SECRET_SIZE = 32

BAD_PROTOCOL, BAD_PROOF, UNEXPECTED = 1, 2, 3
_NAMES = {BAD_PROTOCOL: "bad-protocol", BAD_PROOF: "bad-proof", UNEXPECTED: "unexpected"}


class HandshakeError(Exception):
    """The handshake failed. `reject` is the frame to send before closing, or None after the peer's own."""

    def __init__(self, code: int, message: str, *, by_peer: bool = False) -> None:
        super().__init__(message)
        self.code = _NAMES.get(code, "unknown")
        self.by_peer = by_peer
        self.reject = None if by_peer else encode(REJECT, 0, bytes([code]) + message.encode()[:500])


def _mac(secret: bytes | bytearray, role: bytes, protocol: int, nonce_guest: bytes, nonce_host: bytes) -> bytes:
    return blake2s(protocol.to_bytes(2, "big") + nonce_guest + nonce_host, key=secret, person=role).digest()


def _expect(frame: Frame, kind: int) -> bytes:
    if frame.kind == REJECT:
        code, text = frame.payload[0], frame.payload[1:].decode("utf-8", "replace")
        raise HandshakeError(code, f"the peer refused: {text}", by_peer=True)
    if frame.kind != kind:
        raise HandshakeError(UNEXPECTED, f"frame kind {frame.kind} came where {kind} was due")
    return frame.payload


class _Side:
    def __init__(self, secret: bytes | bytearray, nonce: bytes | None, protocol: int) -> None:
        if len(secret) != SECRET_SIZE:
            raise ValueError(f"the secret has {len(secret)} bytes, not {SECRET_SIZE}")
        self._secret = secret
        self._protocol = protocol
        self._nonce = urandom(NONCE_SIZE) if nonce is None else nonce
        self._peer_nonce = b""
        self.done = False
        """True once the peer has proved itself."""


class GuestSide(_Side):
    """The dialling side. Send `hello()`, then what `receive` returns, until `done`.

    A `bytearray` is kept, not copied: the caller can wipe it when the handshake is over.
    """

    def __init__(self, secret: bytes | bytearray, *, nonce: bytes | None = None, protocol: int = PROTOCOL) -> None:
        super().__init__(secret, nonce, protocol)

    def hello(self) -> bytes:
        """The first frame's bytes."""
        return encode(HELLO, 0, self._protocol.to_bytes(2, "big") + self._nonce)

    def receive(self, frame: Frame) -> bytes:
        """Take the host's frame in; return bytes to send, empty when done.

        Raises:
            HandshakeError: wrong frame, wrong proof, or the host's REJECT.
        """
        if not self._peer_nonce:
            self._peer_nonce = _expect(frame, CHALLENGE)
            proof = _mac(self._secret, b"vb-guest", self._protocol, self._nonce, self._peer_nonce)
            return encode(PROOF, 0, proof)
        given = _expect(frame, WELCOME)
        wanted = _mac(self._secret, b"vb-host", self._protocol, self._nonce, self._peer_nonce)
        if not compare_digest(given, wanted):
            raise HandshakeError(BAD_PROOF, "the host does not know this box's secret")
        self.done = True
        return b""


class HostSide(_Side):
    """The answering side. Send what `receive` returns, until `done`."""

    def __init__(self, secret: bytes, *, nonce: bytes | None = None, protocol: int = PROTOCOL) -> None:
        super().__init__(secret, nonce, protocol)

    def receive(self, frame: Frame) -> bytes:
        """Take the guest's frame in; return bytes to send; `done` after the WELCOME is returned.

        Raises:
            HandshakeError: wrong frame, protocol or proof, or the guest's REJECT.
        """
        if not self._peer_nonce:
            payload = _expect(frame, HELLO)
            theirs = int.from_bytes(payload[:2], "big")
            if theirs != self._protocol:
                raise HandshakeError(
                    BAD_PROTOCOL,
                    f"the guest speaks protocol {theirs}, this host {self._protocol}; build the image again",
                )
            self._peer_nonce = payload[2:]
            return encode(CHALLENGE, 0, self._nonce)
        given = _expect(frame, PROOF)
        if not compare_digest(
            given, _mac(self._secret, b"vb-guest", self._protocol, self._peer_nonce, self._nonce)
        ):
            raise HandshakeError(BAD_PROOF, "the guest does not know this box's secret")
        self.done = True
        welcome = _mac(self._secret, b"vb-host", self._protocol, self._peer_nonce, self._nonce)
        return encode(WELCOME, 0, welcome)
