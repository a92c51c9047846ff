"""The guest's stand-ins for names: DNS messages in and out, as bytes, and what no message may do."""

from __future__ import annotations

import importlib
import socket
import struct
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from voidbox_lab.resources import data_dir

sys.path.append(str(data_dir("guest")))
try:
    Loop = importlib.import_module("voidbox_guest.loop").Loop
    guest = importlib.import_module("voidbox_guest.names")
finally:
    sys.path.pop()
COUNT, FIRST, Names = guest.COUNT, guest.FIRST, guest.Names


def question(name: str, kind: int = 1, *, flags: int = 0x0100, ident: int = 0xBEEF) -> bytes:
    """A query for `name` as dig makes it."""
    labels = b"".join(bytes((len(x),)) + x.encode("latin-1") for x in name.split("."))
    return struct.pack(">6H", ident, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)


def code(answer: bytes | None) -> tuple[int, int]:
    """(response code, answers)."""
    assert answer is not None
    ident, flags, _, answers = struct.unpack(">4H", answer[:8])
    assert ident == 0xBEEF
    assert flags & 0x8080 == 0x8080, "a response, with recursion"
    return flags & 15, answers


def test_a_name_has_one_address_and_the_address_says_the_name() -> None:
    names = Names()
    asked = question("PyPI.org")
    answer = names.answer(asked)
    assert answer is not None
    assert answer[12 : len(asked)] == asked[12:], "the question comes back as it was written"
    pointer, kind, family, ttl, size = struct.unpack(">3HIH", answer[len(asked) : len(asked) + 12])
    assert (pointer, kind, family, ttl, size) == (0xC00C, 1, 1, 1, 4)
    address = answer[-4:]
    assert socket.inet_ntoa(address).startswith("198.18.")
    assert names.meant(address) == "pypi.org"
    again = names.answer(question("pypi.org"))
    assert again is not None
    assert again[-4:] == address
    other = names.answer(question("files.pythonhosted.org"))
    assert other is not None
    assert other[-4:] != address


@pytest.mark.parametrize("kind", [2, 15, 16, 28, 33, 65, 255])
def test_what_is_not_an_address_has_no_answer(kind: int) -> None:
    assert code(Names().answer(question("example.org", kind))) == (0, 0)


@pytest.mark.parametrize("name", ["a b.org", "a\u00e9.org", "1.0.0.127.in-addr.arpa", "x/y.org", "a:1.org"])
def test_what_is_no_name_of_a_host_does_not_exist(name: str) -> None:
    names = Names()
    assert code(names.answer(question(name))) == (3, 0)
    assert not names._numbers


def test_malformed_and_foreign_messages() -> None:
    names, good = Names(), question("example.org")
    assert names.answer(good[:11]) is None
    assert names.answer(good + bytes(600)) is None
    assert names.answer(question("example.org", flags=0x8100)) is None, "a response"
    assert code(names.answer(question("example.org", flags=0x2100))) == (4, 0)
    assert code(names.answer(good[:4] + b"\0\2" + good[6:])) == (1, 0)
    assert code(names.answer(good[:12] + b"\xc0\x0c" + good[-4:])) == (1, 0)
    for end in range(12, len(good)):
        assert code(names.answer(good[:end])) == (1, 0)


@given(st.binary(max_size=600))
@example(question("a" * 63 + "." + "b" * 63))
def test_no_message_is_an_error(data: bytes) -> None:
    names = Names()
    answer = names.answer(data)
    assert answer is None or len(answer) <= len(data) + 16
    assert len(names._numbers) <= 1


def test_the_oldest_name_goes_when_there_are_too_many() -> None:
    names = Names()
    first = names.number("first.org")
    for n in range(COUNT - 2):
        names.number(f"{n}.org")
    assert names.meant(first.to_bytes(4, "big")) == "first.org"
    assert names.number("last.org") == first
    assert names.meant(first.to_bytes(4, "big")) == "last.org"
    assert len(names._numbers) == len(names._names) == COUNT - 1
    assert all(n >> 17 == FIRST >> 17 for n in names._names)
    assert names.number("first.org") != first


def test_an_address_of_the_world_means_itself_and_a_stand_in_for_nothing_is_an_error() -> None:
    names = Names()
    assert names.meant(b"\x5d\xb8\xd8\x22") == "93.184.216.34"
    with pytest.raises(OSError, match="nothing"):
        names.meant(bytes((198, 19, 0, 1)))


def test_datagrams_are_answered_where_they_came_from() -> None:
    """By libc's own resolver this is tried in a real box (tests/daemon/test_egress_vm.py)."""
    loop = Loop()
    port = guest.serve(loop, Names(), 0, "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        client.send(b"nonsense")
        client.send(question("example.org"))
        loop.after(0.2, loop.stop)
        loop.run()
        assert code(client.recv(512)) == (0, 1)
