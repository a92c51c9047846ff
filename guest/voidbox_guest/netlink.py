"""Two requests to the kernel's networking: take every address for this machine's, and send its TCP to one port.

netlink(7), rtnetlink(7), and the headers linux/netlink.h, linux/rtnetlink.h, linux/netfilter/nfnetlink.h and
linux/netfilter/nf_tables.h, from which the numbers are.
"""

from __future__ import annotations

import os
from _socket import AF_INET, AF_NETLINK, SO_RCVTIMEO, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET
from _socket import socket as raw_socket

_ROUTE, _NETFILTER = 0, 12
_ERROR = 2
_REQUEST, _ACK, _REPLACE, _CREATE, _APPEND = 1, 4, 0x100, 0x400, 0x800
_NESTED = 0x8000
_NEW_ROUTE = 24
_TABLES = 10 << 8
_BATCH_BEGIN, _BATCH_END, _NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0x10, 0x11, _TABLES | 0, _TABLES | 3, _TABLES | 6
_LO = 1
_TCP = 6


def own_all() -> None:
    """Every IPv4 address is this machine's own (``ip route add local default dev lo``). Raises OSError."""
    # rtmsg: IPv4, all bits of any, the table `local`, of boot, of this host, to itself.
    route = bytes((AF_INET, 0, 0, 0, 255, 3, 254, 2)) + bytes(4)
    out = _attribute(4, _LO.to_bytes(4, "little"))
    _ask(_ROUTE, [_message(_NEW_ROUTE, _REQUEST | _ACK | _CREATE | _REPLACE, 1, route + out)], 1)


def redirect_tcp(port: int) -> None:
    """What connects to an address beyond 127.0.0.0/8 arrives at 127.0.0.1:`port`. Raises OSError.

    ``nft add rule ip voidbox out meta l4proto tcp ip daddr != 127.0.0.0/8 redirect to :PORT``"""
    table, chain = b"voidbox\0", b"out\0"
    hook = _attribute(1, _number(3)) + _attribute(2, (-100).to_bytes(4, "big", signed=True))
    expressions = (
        _expression(b"meta\0", (1, _number(1)), (2, _number(16))),
        _compare(0, bytes((_TCP,))),
        # The first byte of the destination.
        _expression(b"payload\0", (1, _number(1)), (2, _number(1)), (3, _number(16)), (4, _number(1))),
        _compare(1, b"\x7f"),
        _expression(b"immediate\0", (1, _number(1)), (2 | _NESTED, _attribute(1, port.to_bytes(2, "big")))),
        _expression(b"redir\0", (1, _number(1))),
    )
    parts = (
        (_NEW_TABLE, _CREATE, _attribute(1, table)),
        (
            _NEW_CHAIN,
            _CREATE,
            _attribute(1, table) + _attribute(3, chain) + _attribute(4 | _NESTED, hook) + _attribute(7, b"nat\0"),
        ),
        (
            _NEW_RULE,
            _CREATE | _APPEND,
            _attribute(1, table) + _attribute(2, chain) + _attribute(4 | _NESTED, b"".join(expressions)),
        ),
    )
    about = bytes((AF_INET, 0, 0, 0))
    batch = bytes(2) + (10).to_bytes(2, "big")
    messages = [
        _message(_BATCH_BEGIN, _REQUEST, 1, batch),
        *(
            _message(kind, _REQUEST | _ACK | flags, 2 + n, about + body)
            for n, (kind, flags, body) in enumerate(parts)
        ),
        _message(_BATCH_END, _REQUEST, 2 + len(parts), batch),
    ]
    _ask(_NETFILTER, messages, len(parts))


def _ask(protocol: int, messages: list[bytes], answers: int) -> None:
    """Send `messages` at once and read their acknowledgements. Raises OSError."""
    sock = raw_socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
    try:
        # The kernel answers within the call to send; the bound is for what nobody foresaw.
        sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, (10).to_bytes(8, "little") + bytes(8))
        sock.sendto(b"".join(messages), (0, 0))
        while answers > 0:
            data = sock.recv(65536)
            while len(data) >= 20:
                length, kind = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:6], "little")
                error = -int.from_bytes(data[16:20], "little", signed=True)
                if kind != _ERROR or error:
                    raise OSError(error, os.strerror(error), "netlink")
                answers -= 1
                data = data[max(length + 3 & ~3, 20) :]
    finally:
        sock.close()


def _message(kind: int, flags: int, serial: int, body: bytes) -> bytes:
    head = (len(body) + 16).to_bytes(4, "little") + kind.to_bytes(2, "little") + flags.to_bytes(2, "little")
    return head + serial.to_bytes(4, "little") + bytes(4) + body


def _attribute(kind: int, value: bytes) -> bytes:
    head = (len(value) + 4).to_bytes(2, "little") + kind.to_bytes(2, "little")
    return head + value + bytes(-len(value) % 4)


def _expression(name: bytes, *attributes: tuple[int, bytes]) -> bytes:
    data = b"".join(_attribute(kind, value) for kind, value in attributes)
    return _attribute(1 | _NESTED, _attribute(1, name) + _attribute(2 | _NESTED, data))


def _compare(how: int, value: bytes) -> bytes:
    """Register 1 is (0) or is not (1) `value`."""
    return _expression(b"cmp\0", (1, _number(1)), (2, _number(how)), (3 | _NESTED, _attribute(1, value)))


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")
