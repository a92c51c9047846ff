"""Credit and state of one connection, against a model and against lies."""

from __future__ import annotations

import socket
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.vsock import packets
from voidbox_lab.vsock.connection import ESTABLISHED, REQUESTED, Connection, Violation

U32 = st.integers(0, packets.MASK32)
WINDOW = 1 << 16


def _connection(state: int = ESTABLISHED) -> Connection:
    return Connection(5, 1, 2, state=state, window=WINDOW, sock=cast("socket.socket", None))


@given(st.lists(st.tuples(U32, U32, st.integers(0, 1 << 20)), max_size=50))
def test_credit_is_never_negative_nor_more_than_claimed(steps: list[tuple[int, int, int]]) -> None:
    c = _connection()
    for buffer, forwarded, sent in steps:
        c.peer(buffer, forwarded)
        credit = c.credit()
        assert 0 <= credit <= buffer
        c.sent += min(credit, sent)


@given(start=st.integers((1 << 32) - 5000, (1 << 32) + 5000), behind=st.integers(0, 4000))
def test_credit_survives_counter_wrap(start: int, behind: int) -> None:
    c = _connection()
    c.sent = start
    c.peer(4096, (start - behind) & packets.MASK32)
    assert c.credit() == 4096 - behind


@given(st.lists(st.tuples(st.integers(0, WINDOW), st.integers(0, WINDOW)), max_size=50))
def test_what_the_guest_may_send_is_bounded_by_the_window(steps: list[tuple[int, int]]) -> None:
    """Whatever it sends: either it fits the window, or it is a violation."""
    c = _connection()
    held = 0
    for come, go in steps:
        if held + come > WINDOW:
            with pytest.raises(Violation):
                c.accept(come)
            return
        c.accept(come)
        held += come
        gone = min(go, held)
        c.release(gone)
        held -= gone
        assert c.received - c.forwarded == held


def test_the_guest_hears_of_credit_before_it_runs_dry() -> None:
    c = _connection()
    c.accept(WINDOW)
    c.release(WINDOW // 2 - 1)
    assert not c.has_control
    c.release(1)
    assert c.has_control
    fields = packets.HEADER.unpack(c.next_control())
    assert fields[6] == packets.CREDIT_UPDATE
    assert fields[8:] == (WINDOW, WINDOW // 2)


def test_data_packets_carry_credit_and_save_the_update() -> None:
    c = _connection()
    c.accept(WINDOW)
    c.release(WINDOW)
    c.write_header(memoryview(bytearray(44)), 10)
    assert not c.has_control


def test_starving_asks_once_until_credit_came() -> None:
    c = _connection()
    c.readable = True
    c.starve()
    c.starve()
    assert packets.HEADER.unpack(c.next_control())[6] == packets.CREDIT_REQUEST
    assert not c.has_control
    assert not c.wants_read, "or the switch would spin"
    c.peer(100, 0)
    assert c.wants_read


def test_data_before_open_and_after_shutdown_is_a_violation() -> None:
    with pytest.raises(Violation):
        _connection(REQUESTED).accept(1)
    c = _connection()
    c.peer_shutdown = packets.SHUT_SEND
    with pytest.raises(Violation):
        c.accept(1)


@given(st.lists(st.integers(1, 7), max_size=100))
def test_pending_control_is_bounded(operations: list[int]) -> None:
    c = _connection()
    for operation in operations:
        c.ask(operation)
    count = 0
    while c.has_control:
        c.next_control()
        count += 1
    assert count <= 7
