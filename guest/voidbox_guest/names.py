"""Names for a box without a resolver: each gets an address that stands in for it, and is told at the other end.

What a program connects to is then the stand-in, `Names.meant` says what was meant, and the host resolves it, where
names are pinned and refused. So no query of a box leaves it: DNS is no way out. Addresses are of 198.18.0.0/15,
which is for tests of networks (RFC 2544) and so never that of a real host.

Messages as in RFC 1035 section 4. Only A questions have answers, any other well-formed one has none.
"""

from __future__ import annotations

from _socket import AF_INET, SO_REUSEADDR, SOCK_CLOEXEC, SOCK_DGRAM, SOL_SOCKET, inet_ntoa
from _socket import socket as raw_socket

from .loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .loop import Loop

FIRST, COUNT = 0xC6120000, 1 << 14
"""The first stand-in, 198.18.0.0, and how many there are at most: then the oldest names go."""
TTL_S = 1
"""Seconds a program may keep an answer: a name that went is asked for again."""
_A, _IN, _MAX_MESSAGE, _AT_ONCE = 1, 1, 512, 64
_NO_ERROR, _FORMAT, _NO_NAME, _NOT_IMPLEMENTED = 0, 1, 3, 4
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


class Names:
    """Stand-ins by name and names by stand-in."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._next = 0

    def number(self, name: str) -> int:
        """The address that stands for `name`, as a number."""
        number = self._numbers.get(name)
        if number is None:
            # The one that was given longest ago.
            number = FIRST + 1 + self._next % (COUNT - 1)
            self._next += 1
            old = self._names.get(number)
            if old is not None:
                del self._numbers[old]
            self._numbers[name], self._names[number] = number, name
        return number

    def meant(self, address: bytes) -> str:
        """The name that `address` (4 bytes) stands for, or itself. Raises OSError: it does for none any more."""
        number = int.from_bytes(address, "big")
        if number >> 17 != FIRST >> 17:
            return inet_ntoa(address)
        name = self._names.get(number)
        if name is None:
            raise OSError("nothing is known by that address")
        return name

    def answer(self, query: bytes) -> bytes | None:
        """The response to one message; None: it deserves none."""
        if len(query) < 12 or len(query) > _MAX_MESSAGE or query[2] & 0x80:
            return None
        if query[2] & 0x78:  # not a standard query
            return _response(query, _NOT_IMPLEMENTED)
        if query[4:6] != b"\0\1":
            return _response(query, _FORMAT)
        labels, at = [], 12
        while at < len(query) and query[at]:
            end = at + 1 + query[at]
            # A pointer (its top bits are set) has no place in a query's only name.
            if query[at] > 63 or end >= len(query):
                return _response(query, _FORMAT)
            labels.append(query[at + 1 : end])
            at = end
        question = query[12 : at + 5]
        if len(question) != at - 7:
            return _response(query, _FORMAT)
        kind, family = int.from_bytes(question[-4:-2], "big"), int.from_bytes(question[-2:], "big")
        name = b".".join(labels).lower()
        if not labels or len(name) > 253 or not all(_LETTERS.issuperset(label.lower()) for label in labels):
            return _response(query, _NO_NAME, question)
        if name.endswith(b".arpa"):
            return _response(query, _NO_NAME, question)
        if (kind, family) != (_A, _IN):
            return _response(query, _NO_ERROR, question)
        return _response(query, _NO_ERROR, question, self.number(name.decode("ascii")))


def _response(query: bytes, code: int, question: bytes = b"", number: int | None = None) -> bytes:
    answer = b""
    if number is not None:
        # The name is a pointer to the question's.
        answer = b"\xc0\x0c\0\1\0\1" + TTL_S.to_bytes(4, "big") + b"\0\4" + number.to_bytes(4, "big")
    counts = b"".join(bool(part).to_bytes(2, "big") for part in (question, answer)) + bytes(4)
    # A response; the query's recursion bit; recursion is available.
    return query[:2] + bytes((0x80 | query[2] & 0x79, 0x80 | code)) + counts + question + answer


def serve(loop: Loop, names: Names, port: int = 53, host: str = "0.0.0.0") -> int:
    """Answer datagrams to `port`; returns it. Raises OSError.

    At every address, since every address is this machine's (`netlink.own_all`): whoever asks some server out there
    is answered here, from that very address."""
    sock = raw_socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)
    sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.setblocking(False)

    def ready(_: int) -> None:
        for _turn in range(_AT_ONCE):
            try:
                query, peer = sock.recvfrom(_MAX_MESSAGE + 1)
                answer = names.answer(query)
                if answer is not None:
                    sock.sendto(answer, peer)
            except OSError:
                return

    loop.watch(sock.fileno(), READ, ready)
    return int(sock.getsockname()[1])
