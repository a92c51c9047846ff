"""Which addresses are this host's own, by the word of its kernel. Not for what else they may be (`addresses`).

Sources: rtnetlink(7), netlink(7), ``linux/rtnetlink.h``; ip-route(8) on the table ``local``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from voidbox_lab.gateway.egress.addresses import Address

_HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence number, port."""
_ROUTE = struct.Struct("=8BI")
"""``struct rtmsg``: family, lengths of destination and source, TOS, table, protocol, scope, type; flags."""
_ATTRIBUTE = struct.Struct("=HH")
"""``struct rtattr``: length, type."""
_ERROR, _NEWROUTE, _GETROUTE, _REQUEST, _DST = 2, 24, 26, 1, 1
_OWN_TYPES = frozenset({2, 3, 4})
"""``RTN_LOCAL``, ``RTN_BROADCAST``, ``RTN_ANYCAST``: what arrives at the host itself, if not only there."""
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES})


def is_own(address: Address) -> bool:
    """Whether `address` is one of this host's own, a secondary one or a range routed to itself included.

    The kernel is asked for the route there. The source of a datagram to it would not tell: for a secondary address
    that is the primary one.

    Raises:
        OSError: the kernel does not say.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        sock.sendto(_question(address), (0, 0))
        # The answer is there when the send returns: the kernel answers within it.
        return _is_own_route(sock.recv(4096, socket.MSG_DONTWAIT))


def _question(address: Address) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    route = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    target = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), _DST) + address.packed
    length = _HEADER.size + len(route) + len(target)
    return _HEADER.pack(length, _GETROUTE, _REQUEST, 1, 0) + route + target


def _is_own_route(answer: bytes) -> bool:
    try:
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind == _NEWROUTE:
            return _ROUTE.unpack_from(answer, _HEADER.size)[7] in _OWN_TYPES
        code = -struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _ERROR else errno.EPROTO
    except struct.error:
        code = errno.EPROTO
    if code in _NO_ROUTE:
        return False  # nothing to reach either
    raise OSError(code, os.strerror(code))
