"""The switch step by step: what a guest or a host client may do to it, and what it does then."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox_lab.vsock import doors, switch, table, uplink
from voidbox_lab.vsock import packets as v

from .bench import Bench
from .descriptors import descriptors, none_left


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="vb") as directory:
        before = descriptors()
        bench = Bench(Path(directory))
        yield bench
        bench.close()
        # The test's own sockets are closed by its end, the switch's by its close.
        assert none_left(before)


def _ended(sock: socket.socket) -> bool:
    """The other side has closed; with bytes of ours unread that shows as a reset."""
    try:
        return sock.recv(10) == b""
    except ConnectionResetError:
        return True


def _operations(answers: list[object]) -> list[int]:
    return [a.operation for a in answers]  # type: ignore[attr-defined]


def test_unknown_connections_are_reset_and_resets_are_not(bench: Bench) -> None:
    for operation in (v.RESPONSE, v.SHUTDOWN, v.RW, v.CREDIT_UPDATE, v.CREDIT_REQUEST, 0, 99):
        (answer,) = bench.says(operation, host=9, guest=8)
        assert (answer.operation, answer.remote, answer.local) == (v.RST, 9, 8)
    assert bench.says(v.RST, host=9, guest=8) == []


def test_other_types_are_reset_and_strangers_ignored(bench: Bench) -> None:
    (answer,) = bench.says(v.REQUEST, host=9, guest=8, kind=2)
    assert (answer.operation, answer.kind) == (v.RST, 2)
    assert bench.says(v.REQUEST, host=9, guest=8, source=77) == []
    assert bench.says(v.REQUEST, host=9, guest=8, target=1) == []
    bench.raw(b"short")
    assert bench.settle() == []
    assert bench.switch.uplink.dropped == 3


def test_guest_dials_a_listener_or_is_refused(bench: Bench) -> None:
    assert _operations(bench.says(v.REQUEST, host=50, guest=8)) == [v.RST]
    with bench.listen(50) as server:
        (answer,) = bench.says(v.REQUEST, host=50, guest=8)
        assert answer.operation == v.RESPONSE
        sock, _ = server.accept()
        with sock:
            bench.says(v.RW, host=50, guest=8, data=b"hello")
            assert sock.recv(10) == b"hello"
            sock.sendall(b"world")
            (packet,) = bench.settle()
            assert (packet.operation, packet.data, packet.forwarded) == (v.RW, b"world", 5)
        # A second request on the same ports is a violation.
        assert v.RST in _operations(bench.says(v.REQUEST, host=50, guest=8))
    assert not bench.switch.table.connections


def test_a_full_backlog_neither_blocks_nor_refuses_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench.listen(50, backlog=0) as server:
        for guest in range(1, 4):
            began = time.monotonic()
            bench.says(v.REQUEST, host=50, guest=guest)
            assert time.monotonic() - began < 0.5
        waiting = len(bench.switch.table.waiting)
        assert waiting >= 1
        assert bench.switch.timeout() == switch.BACKLOG_TICK_S
        server.accept()[0].close()
        bench.switch.expire()
        assert len(bench.switch.table.waiting) == waiting - 1
        monkeypatch.setattr(doors, "BACKLOG_S", 0.0)
        for c in bench.switch.table.waiting:
            c.deadline = 0.0
        bench.switch._swept = 0.0
        bench.switch.expire()
        assert v.RST in _operations(bench.settle())
        assert not bench.switch.table.waiting


def test_host_client_connects_talks_and_half_closes(bench: Bench) -> None:
    sock, port = bench.dialled()
    with sock:
        sock.sendall(b"x" * 10_000)
        got = bench.settle()
        assert b"".join(p.data for p in got) == b"x" * 10_000
        sock.shutdown(socket.SHUT_WR)
        (packet,) = bench.settle()
        assert (packet.operation, packet.flags) == (v.SHUTDOWN, v.SHUT_SEND)
        bench.says(v.RW, host=port, guest=7, data=b"late")
        assert sock.recv(10) == b"late"
        answers = bench.says(v.SHUTDOWN, host=port, guest=7, flags=v.SHUT_BOTH)
        assert _operations(answers) == [v.RST]
        assert sock.recv(10) == b""


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT 4294967295\n",
        b"CONNECT -1\n",
        b"GET / HTTP/1.1\n",
        b"\n",
        b"C" * 64,
    ],
)
def test_bad_commands_are_hung_up_on(bench: Bench, line: bytes) -> None:
    with bench.client(line) as sock:
        assert bench.settle() == []
        assert _ended(sock)


def test_command_in_pieces_and_bytes_right_behind_it(bench: Bench) -> None:
    with bench.client(b"CONN") as sock:
        bench.settle()
        sock.sendall(b"ECT 7\nearly")
        (request,) = bench.settle()
        (packet,) = bench.says(v.RESPONSE, host=request.remote, guest=7)
        assert packet.data == b"early"


def test_silent_client_is_hung_up_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "COMMAND_S", 0.0)
    with bench.client(b"CONN") as sock:
        bench.settle()
        bench.switch.expire()
        bench.poller.sweep()
        assert _ended(sock)


def test_refusal_is_said_and_closes_the_client(bench: Bench) -> None:
    with bench.client() as sock:
        (request,) = bench.settle()
        bench.says(v.RST, host=request.remote, guest=7)
        assert sock.recv(10) == b"REFUSED\n"
        assert sock.recv(10) == b""


def test_client_that_leaves_before_the_answer_is_withdrawn(bench: Bench) -> None:
    sock = bench.client()
    (request,) = bench.settle()
    sock.close()
    assert _operations(bench.settle()) == [v.RST]
    assert _operations(bench.says(v.RESPONSE, host=request.remote, guest=7)) == [v.RST]


@pytest.mark.parametrize("length", [1, 5, 65537, 0xFFFFFFFF])
def test_a_length_that_lies_costs_the_connection(bench: Bench, length: int) -> None:
    sock, port = bench.dialled()
    with sock:
        assert _operations(bench.says(v.RW, host=port, guest=7, length=length)) == [v.RST]
        assert sock.recv(10) == b""


def test_credit_of_the_guest_is_honoured(bench: Bench) -> None:
    """Not one byte more than it said, also when its counters make no sense; one request for more."""
    sock, port = bench.dialled()
    with sock:
        bench.says(v.CREDIT_UPDATE, host=port, guest=7, buffer=1000)
        sock.sendall(b"q" * 5000)
        answers = bench.settle()
        assert sum(a.length for a in answers) == 1000
        assert _operations(answers)[-1] == v.CREDIT_REQUEST
        assert bench.says(v.CREDIT_UPDATE, host=port, guest=7, buffer=1000, forwarded=123_456) == []
        answers = bench.says(v.CREDIT_UPDATE, host=port, guest=7, buffer=1000, forwarded=600)
        assert sum(a.length for a in answers) == 600
        answers = bench.says(v.CREDIT_UPDATE, host=port, guest=7, buffer=1 << 31, forwarded=1600)
        assert sum(a.length for a in answers) == 3400


def test_guest_beyond_its_credit_is_reset_and_what_is_held_is_bounded(bench: Bench) -> None:
    sock, port = bench.dialled()
    with sock:
        (c,) = bench.switch.table.connections.values()
        for _ in range(100):
            held = len(c.backlog)
            answers = bench.says(v.RW, host=port, guest=7, data=b"f" * 65536)
            if v.RST in _operations(answers):
                break
            assert held <= len(c.backlog) <= c.window
        else:
            raise AssertionError("never reset")
        assert not bench.switch.table.connections


def test_slow_host_gets_all_after_the_guest_has_gone(bench: Bench) -> None:
    sock, port = bench.dialled()
    sent = b""
    (c,) = bench.switch.table.connections.values()
    while len(c.backlog) < 60_000:
        block = os.urandom(30_000)
        bench.says(v.RW, host=port, guest=7, data=block)
        sent += block
    assert bench.says(v.SHUTDOWN, host=port, guest=7, flags=v.SHUT_BOTH) == []
    bench.says(v.RST, host=port, guest=7)  # Linux, after 8 s
    assert not bench.switch.table.connections
    got = b""
    with sock:
        while len(got) < len(sent):
            got += sock.recv(65536)
            bench.settle()
        assert got == sent
        assert sock.recv(1) == b""
    assert not bench.switch.table.draining


def test_host_that_closes_with_the_guest_starved_rests_and_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case that spun a core: hang-up on a connection that may not be read for want of credit."""
    sock, port = bench.dialled()
    bench.says(v.CREDIT_UPDATE, host=port, guest=7, buffer=10)
    sock.sendall(b"z" * 100)
    sock.close()
    bench.settle()
    events = 0
    for _ in range(50):
        events += len(bench.poller._epoll.poll(0))
    assert events == 0
    for c in list(bench.switch.table.timed):
        c.deadline = 0.0
    bench.switch._swept = 0.0
    bench.switch.expire()
    assert _operations(bench.settle()) == [v.RST]
    assert not bench.switch.table.connections


def test_host_that_closed_is_told_to_the_guest_after_its_last_byte(bench: Bench) -> None:
    sock, port = bench.dialled()
    sock.sendall(b"last words")
    sock.close()
    answers = bench.settle()
    assert [a.data for a in answers if a.operation == v.RW] == [b"last words"]
    assert (answers[-1].operation, answers[-1].flags) == (v.SHUTDOWN, v.SHUT_BOTH)
    assert bench.says(v.RW, host=port, guest=7, data=b"too late") == []
    assert bench.says(v.RST, host=port, guest=7) == []
    assert not bench.switch.table.connections
    assert bench.switch.timeout() is None


def test_flood_of_refusals_is_held_back_by_the_ring(bench: Bench) -> None:
    """With no receive buffers its packets stay unread, and are read again when there are some."""
    for head, _ in bench.rx.reap():
        raise AssertionError(head)
    bench.switch.rx.stop()
    for n in range(uplink.MAX_RESETS + 40):
        bench.raw(v.HEADER.pack(5, 2, n, 1, 0, 1, v.RW, 0, 0, 0))
        bench.settle()
        assert len(bench.switch.table.resets) <= uplink.MAX_RESETS
        if not bench._slots:
            break
    assert len(bench.switch.table.resets) == uplink.MAX_RESETS
    unread = len(bench._slot_of)
    assert unread > 30
    bench._start(bench.switch.rx, bench.rx)
    answers: list[object] = []
    while got := bench.settle():
        answers += got
    assert len(answers) == uplink.MAX_RESETS + unread


def test_number_of_connections_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_CONNECTIONS", 3)
    with bench.listen(50):
        answers = [bench.says(v.REQUEST, host=50, guest=g)[0].operation for g in range(1, 6)]
        assert answers == [v.RESPONSE] * 3 + [v.RST] * 2
        with bench.client() as sock:
            bench.settle()
            assert sock.recv(10) == b"BUSY\n"
            assert _ended(sock)


def test_number_of_connections_a_guest_opens_is_bounded(bench: Bench) -> None:
    """They take up room in host processes that serve other boxes too. Host clients are not affected."""
    with bench.listen(50, backlog=200) as server:
        answers = [bench.says(v.REQUEST, host=50, guest=g)[0].operation for g in range(1, table.MAX_DIALLED + 4)]
        assert answers == [v.RESPONSE] * table.MAX_DIALLED + [v.RST] * 3
        with bench.client():
            assert _operations(bench.settle()) == [v.REQUEST]
        bench.settle()
        bench.says(v.RST, host=50, guest=1)
        assert _operations(bench.says(v.REQUEST, host=50, guest=900)) == [v.RESPONSE]
        assert _operations(bench.says(v.REQUEST, host=50, guest=901)) == [v.RST]
        assert _operations(bench.says(v.REQUEST, host=51, guest=902)) == [v.RST]
        server.close()
        bench.switch.reset()
        assert not bench.switch.table.dialled


def test_windows_shrink_when_crowded() -> None:
    total = sum(
        max(table.MIN_WINDOW, min(table.MAX_WINDOW, table.MEMORY_BUDGET // n))
        for n in range(1, table.MAX_CONNECTIONS + 1)
    )
    assert total < 128 << 20


PACKET = st.tuples(
    st.sampled_from([*range(9), 1, 2, 4, 5, 5, 5]),  # operation
    st.sampled_from([50, 51, 1 << 30, (1 << 30) + 1, 0xFFFFFFFF]),  # host port
    st.sampled_from([7, 8, 9]),  # guest port
    st.binary(max_size=100),
    st.sampled_from([None, 0, 1, 65536, 0xFFFFFFFF]),  # length, None: honest
    st.integers(0, 5),  # flags
    st.sampled_from([0, 1, 1 << 18, 0xFFFFFFFF]),  # buf_alloc
    st.sampled_from([0, 1, 0xFFFFFFFF]),  # fwd_cnt
)


@settings(max_examples=150, deadline=None)
@given(packets=st.lists(st.one_of(PACKET, st.sampled_from(["client", "write", "read", "close"])), max_size=40))
def test_any_packets_leave_it_sound(packets: list[object]) -> None:
    """Whatever guest and clients do: it rests, stays within bounds, and frees everything at the end."""
    with tempfile.TemporaryDirectory(prefix="vb") as directory:
        before = descriptors()
        bench = Bench(Path(directory))
        server = bench.listen(50)
        server.setblocking(False)
        clients: list[socket.socket] = []
        for step in packets:
            if step == "client":
                clients.append(bench.client())
                bench.settle()
            elif step == "write" and clients:
                clients[-1].setblocking(False)
                with contextlib.suppress(OSError):
                    clients[-1].send(b"d" * 5000)
                bench.settle()
            elif step == "read" and clients:
                clients[-1].setblocking(False)
                with contextlib.suppress(OSError):
                    clients[-1].recv(5000)
                bench.settle()
            elif step == "close" and clients:
                clients.pop().close()
                bench.settle()
            elif isinstance(step, tuple):
                operation, host, guest, data, length, flags, buffer, forwarded = step
                odd = {} if length is None else {"length": length}
                bench.says(
                    operation,
                    host=host,
                    guest=guest,
                    data=data,
                    flags=flags,
                    buffer=buffer,
                    forwarded=forwarded,
                    **odd,
                )
            for c in bench.switch.table.connections.values():
                assert len(c.backlog) <= c.window
        for client in clients:
            client.close()
        server.close()
        bench.close()
        assert none_left(before)
