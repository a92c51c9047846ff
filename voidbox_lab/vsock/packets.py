"""The virtio-vsock packet header: numbers, layout, no behaviour. Source: VIRTIO 1.2 §5.10.6.

Every packet in a queue is this header, little-endian, followed by `length` bytes of payload.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<QQIIIHHIII")
"""src_cid, dst_cid, src_port, dst_port, length, type, op, flags, buf_alloc, fwd_cnt."""

HEADER_SIZE = HEADER.size
assert HEADER_SIZE == 44

HOST_CID = 2
"""The well-known CID of the host (§5.10.4); a packet for any other is dropped."""
TYPE_STREAM = 1
MASK32 = 0xFFFFFFFF

MAX_PAYLOAD = 64 * 1024
"""Bytes of payload in one packet: Linux's VIRTIO_VSOCK_MAX_PKT_BUF_SIZE, which vhost-vsock enforces too."""

REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
"""Operations, §5.10.6."""

SHUT_RECEIVE, SHUT_SEND = 1, 2
"""Flags of SHUTDOWN: the sender of the packet will receive, respectively send, no more (§5.10.6.4)."""
SHUT_BOTH = SHUT_RECEIVE | SHUT_SEND


def reset(cid: int, host_port: int, guest_port: int, kind: int = TYPE_STREAM) -> bytes:
    """An RST from the host for a connection that does not exist (any more)."""
    return HEADER.pack(HOST_CID, cid, host_port, guest_port, 0, kind, RST, 0, 0, 0)
