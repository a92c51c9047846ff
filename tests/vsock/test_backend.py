"""The vhost-user side: what QEMU may ask, in which order, and what a broken one gets."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox_lab.vsock import protocol as p
from voidbox_lab.vsock.device import Device

from . import guest_peer as peer
from .descriptors import descriptors, none_left
from .fake_driver import USER_BASE, FrontEnd
from .fake_guest import FakeGuest


class Running:
    """A device in a thread of this process, so that its insides can be looked at."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "vs"
        self.device = Device(vhost_socket=str(directory / "vu"), host_socket=str(self.path), cid=9)
        self.lines: list[str] = []
        self.device.log = self.lines.append  # type: ignore[method-assign]
        self.failed: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            if self.device.wait_for_front_end(10):
                self.device.run()
        except BaseException as error:
            self.failed.append(error)
            raise
        finally:
            self.device.close()

    def front_end(self) -> socket.socket:
        """A socket connected as QEMU's."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(5)
        sock.connect(str(self.path.parent / "vu"))
        return sock

    def client(self, port: int) -> socket.socket:
        """A host client connected to the guest's `port`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(5)
        sock.connect(str(self.path))
        sock.sendall(b"CONNECT %d\n" % port)
        line = b""
        while not line.endswith(b"\n"):
            byte = sock.recv(1)
            if not byte:
                raise ConnectionRefusedError
            line += byte
        return sock

    def ended(self) -> None:
        """The device has ended by itself, without an exception."""
        self.thread.join(5)
        assert not self.thread.is_alive()
        assert not self.failed


@pytest.fixture
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="vb") as directory:
        before = descriptors()
        running = Running(Path(directory))
        yield running
        running.ended()
        assert list(Path(directory).iterdir()) == []
        assert none_left(before)


def _echoes(sock: socket.socket, data: bytes = b"ping") -> bool:
    sock.sendall(data)
    got = b""
    while len(got) < len(data):
        part = sock.recv(len(data) - len(got))
        if not part:
            return False
        got += part
    return got == data


def test_memory_table_may_change_under_open_connections(running: Running) -> None:
    """QEMU sends it anew whenever its memory map changes; rings stay where they were."""
    guest = FakeGuest(running.path.parent / "vu")
    with running.client(peer.ECHO) as sock:
        for _ in range(5):
            assert _echoes(sock, os.urandom(50_000))
            guest.front.share_memory()
        assert _echoes(sock)
    guest.close()
    assert running.lines == []


def test_a_paused_machine_keeps_its_connections(running: Running) -> None:
    """`stop` and `cont`: GET_VRING_BASE, then the same base again."""
    guest = FakeGuest(running.path.parent / "vu")
    with running.client(peer.ECHO) as sock:
        assert _echoes(sock, b"x" * 10_000)
        bases = [queue.stop() for queue in (guest.front.rx, guest.front.tx)]
        sock.sendall(b"sent while paused")
        for queue, base in zip((guest.front.rx, guest.front.tx), bases, strict=True):
            queue.set_up(base)
        assert sock.recv(100) == b"sent while paused"
    guest.close()


def test_a_new_driver_knows_no_old_connections(running: Running) -> None:
    """After a guest's reset rings start elsewhere: old clients are closed, new ones served."""
    guest = FakeGuest(running.path.parent / "vu")
    sock = running.client(peer.ECHO)
    assert _echoes(sock)
    for queue in (guest.front.rx, guest.front.tx):
        queue.stop()
        queue.front.tell(p.SET_VRING_BASE, p.VRING.pack(queue.index, 0))
    with sock:
        assert sock.recv(10) == b""
    guest.close()


def test_a_lying_ring_stops_the_device_not_the_process(running: Running) -> None:
    """The guest gets nothing more, clients are closed; a driver that starts anew is served."""
    guest = FakeGuest(running.path.parent / "vu")
    sock = running.client(peer.ECHO)
    assert _echoes(sock)
    with guest.lock:
        guest.front.tx.describe(100, 1 << 60, 50, 0, 0)
        guest.front.tx.publish(100)
        guest.front.tx.notify(force=True)
    with sock:
        assert sock.recv(10) == b""
    assert "at fault" in running.lines[0]
    assert running.thread.is_alive()
    with guest.lock:
        front = guest.front
        for queue in (front.rx, front.tx):
            queue.stop()
            front.view(queue.rings[1], 6 + 2 * queue.size)[:] = bytes(6 + 2 * queue.size)
            front.view(queue.rings[2], 6 + 8 * queue.size)[:] = bytes(6 + 8 * queue.size)
            queue.next = queue.seen = queue.kicked = 0
            queue.chains, queue.free = {}, list(range(queue.size))
            queue.set_up()
        guest._buffers.clear()
        for n in range(64):
            guest._post((1 << 32) + 4200 * n)
        front.rx.notify()
        guest.sockets.clear()
    with running.client(peer.ECHO) as again:
        assert _echoes(again)
    guest.close()


def test_a_second_front_end_is_refused(running: Running) -> None:
    guest = FakeGuest(running.path.parent / "vu")
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, by timing
        running.front_end().recv(1)
    guest.close()


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (p.SET_VRING_ADDR, p.VRING_ADDR.pack(0, 0, USER_BASE + 1, USER_BASE + 4096, USER_BASE + 8192, 0)),
        (p.SET_VRING_ADDR, p.VRING_ADDR.pack(1, 0, 0, 0, 0, 0)),
        (p.SET_VRING_ADDR, p.VRING_ADDR.pack(1, 0, (1 << 64) - 16, USER_BASE, USER_BASE, 0)),
        (99, b""),
    ],
)
def test_refusals_are_answered(running: Running, request_: int, payload: bytes) -> None:
    """What cannot be done is answered with an error where an answer is wanted; the device goes on."""
    front = FrontEnd(running.front_end())
    front.start()
    assert front.try_tell(request_, payload) != 0
    assert front.ask(p.GET_QUEUE_NUM) == p.U64.pack(2)
    front.close()


@pytest.mark.parametrize(
    "message",
    [
        p.HEADER.pack(1, 2, 0),
        p.HEADER.pack(1, 1, 1 << 30),
        p.encode(p.SET_VRING_NUM, p.VRING.pack(0, 100)),
        p.encode(p.SET_VRING_NUM, p.VRING.pack(0, 1 << 15)),
        p.encode(p.SET_VRING_NUM, p.VRING.pack(2, 128)),
        p.encode(p.SET_VRING_KICK, p.U64.pack(7)),
        p.encode(p.SET_FEATURES, p.U64.pack(1 << 28)),
        p.encode(p.SET_FEATURES, b""),
        p.encode(p.SET_MEM_TABLE, p.MEM_HEADER.pack(9, 0)),
        p.encode(p.SET_MEM_TABLE, p.MEM_HEADER.pack(1, 0) + bytes(32)),
    ],
)
def test_malformed_messages_end_the_device(running: Running, message: bytes) -> None:
    sock = running.front_end()
    with sock:
        sock.sendall(message)
        assert sock.recv(1) == b""
    running.ended()
    assert len(running.lines) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 41),
            st.sampled_from([1, 9, 0, 5]),
            st.binary(max_size=64),
            st.integers(0, 2),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_any_messages_end_or_are_served(messages: list[tuple[int, int, bytes, int, bool]]) -> None:
    """Random requests with random descriptors: no exception, no descriptor left."""
    with tempfile.TemporaryDirectory(prefix="vb") as directory:
        before = descriptors()
        running = Running(Path(directory))
        sock = running.front_end()
        fds = [os.memfd_create("x"), os.eventfd(0)]
        os.ftruncate(fds[0], 8192)
        with contextlib.suppress(OSError):
            for request, flags, payload, count, cut in messages:
                data = p.encode(request, payload, flags)
                socket.send_fds(sock, [data[: len(data) - cut]], fds[:count])
        sock.close()
        for fd in fds:
            os.close(fd)
        running.ended()
        assert none_left(before)
