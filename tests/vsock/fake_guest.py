"""A guest without a VM: a small vsock stack on `fake_driver`, with sockets for `guest_peer`'s services.

It behaves as Linux does where that matters (credit, 4 KiB receive buffers, shutdown answered by RST)
and is strict where Linux is lenient: a device that exceeds its credit, or talks on connections that do
not exist, is noted in `faults`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque
from pathlib import Path

from voidbox_lab.vsock import packets as v

from . import guest_peer
from .fake_driver import HIGH, FrontEnd

WINDOW = 256 << 10
_RX_BUFFER, _TX_SLOTS = 4096, 24
_STRIDE = v.HEADER_SIZE + v.MAX_PAYLOAD + 20


class FakeSocket:
    """One connection as a blocking socket-like object; all state under the guest's lock."""

    def __init__(self, guest: FakeGuest, local: int, remote: int) -> None:
        self.guest, self.local, self.remote = guest, local, remote
        self.state = "opening"
        self.data = bytearray()
        self.received = self.forwarded = self.told = 0
        self.sent = self.peer_buffer = self.peer_forwarded = 0
        self.eof = self.peer_deaf = self.closed = self.shut = False

    def recv(self, size: int) -> bytes:
        """As socket.recv."""
        with self.guest.lock:
            self.guest.wait(lambda: self.data or self.eof or self.state == "reset")
            out = bytes(self.data[:size])
            del self.data[:size]
            self.forwarded += len(out)
            if self.forwarded - self.told >= WINDOW // 4:
                self.guest.send(self, v.CREDIT_UPDATE)
            return out

    def sendall(self, data: bytes) -> None:
        """As socket.sendall."""
        with memoryview(data) as view, self.guest.lock:
            at = 0
            while at < len(view):
                self.guest.wait(lambda: self.broken() or (self.credit() > 0 and self.guest.slots))
                if self.broken():
                    raise BrokenPipeError
                part = bytes(view[at : at + min(self.credit(), v.MAX_PAYLOAD)])
                self.sent += len(part)
                self.guest.send(self, v.RW, part)
                at += len(part)

    def broken(self) -> bool:
        """Sending is over."""
        return self.state == "reset" or self.shut or self.closed or self.peer_deaf

    def credit(self) -> int:
        """Bytes the device would take."""
        return self.peer_buffer - ((self.sent - self.peer_forwarded) & v.MASK32)

    def shutdown(self, how: int) -> None:
        """As socket.shutdown, for SHUT_WR."""
        assert how == socket.SHUT_WR
        with self.guest.lock:
            if self.state == "open" and not self.shut:
                self.shut = True
                self.guest.send(self, v.SHUTDOWN, flags=v.SHUT_SEND)

    def close(self) -> None:
        """As socket.close on Linux: SHUTDOWN, then the other side's RST frees the port."""
        with self.guest.lock:
            if not self.closed:
                self.closed = True
                if self.state == "open":
                    self.guest.send(self, v.SHUTDOWN, flags=v.SHUT_BOTH)


class FakeGuest:
    """Connects to the device at `path` and serves `guest_peer` until `close`."""

    def __init__(self, path: Path | str, *, event_index: bool = True, split_header: bool = False) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        sock.settimeout(10)
        self.front = FrontEnd(sock, event_index=event_index)
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.sockets: dict[tuple[int, int], FakeSocket] = {}
        self.faults: list[str] = []
        self.split_header = split_header
        self._buffers: dict[int, int] = {}
        self._slot_of: dict[int, int] = {}
        self.slots = list(range(_TX_SLOTS))
        self._waiting: deque[bytes] = deque()
        self._next_port = 1024
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self.front.start()
        with self.lock:
            for n in range(self.front.rx.size // (3 if split_header else 2)):
                self._post(HIGH + 4200 * n)
            self.front.rx.notify()
        self._threads = [threading.Thread(target=self._loop, name="fake-guest", daemon=True)]
        self._threads[0].start()

    def wait(self, until: object) -> None:
        """Wait, bounded, for a condition; the lock is held."""
        assert callable(until)
        if not self.changed.wait_for(lambda: self._stopping or until(), 60):
            self.faults.append("a guest socket waited 60 s")
        if self._stopping:
            raise OSError("guest stopped")

    def connect(self, port: int) -> FakeSocket:
        """Dial a host port."""
        with self.lock:
            self._next_port += 1
            s = self.sockets[self._next_port, port] = FakeSocket(self, self._next_port, port)
            self.send(s, v.REQUEST)
            self.wait(lambda: s.state != "opening")
            if s.state != "open":
                raise ConnectionRefusedError
            return s

    def send(self, s: FakeSocket, operation: int, data: bytes = b"", flags: int = 0) -> None:
        """One packet on a connection."""
        s.told = s.forwarded
        self.raw(
            v.HEADER.pack(
                self.front.cid, v.HOST_CID, s.local, s.remote, len(data), v.TYPE_STREAM, operation, flags,
                WINDOW, s.forwarded & v.MASK32,
            )
            + data
        )  # fmt: skip

    def raw(self, packet: bytes) -> None:
        """Any bytes into the tx ring, in order."""
        with self.lock:
            self._waiting.append(packet)
            self._pump()

    def _pump(self) -> None:
        tx = self.front.tx
        while self._waiting and self.slots:
            packet, slot = self._waiting.popleft(), self.slots.pop()
            at = HIGH + (1 << 20) + slot * _STRIDE
            self.front.view(at, len(packet))[:] = packet
            cut = 20 if self.split_header else v.HEADER_SIZE
            pieces = [(at, min(cut, len(packet)))]
            if len(packet) > cut:
                pieces.append((at + cut, len(packet) - cut))
            head = tx.add(pieces, writable=False)
            assert head is not None
            self._slot_of[head] = slot
        tx.notify()

    def _post(self, at: int) -> None:
        """One receive buffer: header and 4 KiB, as Linux 6.1 lays it out."""
        pieces = [(at, v.HEADER_SIZE), (at + v.HEADER_SIZE, _RX_BUFFER)]
        if self.split_header:
            pieces = [(at, 20), (at + 20, 60), (at + 80, _RX_BUFFER - 36)]
        head = self.front.rx.add(pieces, writable=True)
        assert head is not None
        self._buffers[head] = at

    def _loop(self) -> None:
        rx, tx = self.front.rx, self.front.tx
        poll = select.poll()
        for fd in (rx.call, tx.call, self._wake):
            poll.register(fd, select.POLLIN)
        while not self._stopping:
            for fd, _ in poll.poll(30_000):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            with self.lock:
                for head, _ in tx.reap():
                    self.slots.append(self._slot_of.pop(head))
                self._pump()
                again = True
                while again:
                    done = rx.reap()
                    for head, written in done:
                        at = self._buffers.pop(head)
                        packet = bytes(self.front.view(at, written))
                        self._post(at)
                        try:
                            self._packet(packet)
                        except Exception as error:
                            self.faults.append(repr(error))
                    again = bool(done)
                rx.notify()
                self.changed.notify_all()

    def _packet(self, packet: bytes) -> None:
        fields = v.HEADER.unpack_from(packet)
        source, target, remote, local, length, kind, operation, flags, buffer, forwarded = fields
        assert (source, target, kind) == (v.HOST_CID, self.front.cid, v.TYPE_STREAM), fields
        assert len(packet) == v.HEADER_SIZE + length, fields
        s = self.sockets.get((local, remote))
        if s is None:
            if operation == v.REQUEST:
                self._requested(local, remote, buffer, forwarded)
            elif operation != v.RST:
                self.raw(v.HEADER.pack(target, source, local, remote, 0, kind, v.RST, 0, 0, 0))
            return
        s.peer_buffer, s.peer_forwarded = buffer, forwarded
        if operation == v.RESPONSE:
            assert s.state == "opening"
            s.state = "open"
        elif operation == v.RST:
            s.state, s.eof = "reset", True
            del self.sockets[local, remote]
        elif operation == v.RW:
            self._data(s, packet[v.HEADER_SIZE :])
        elif operation == v.SHUTDOWN:
            s.eof = s.eof or bool(flags & v.SHUT_SEND)
            s.peer_deaf = s.peer_deaf or bool(flags & v.SHUT_RECEIVE)
            if flags == v.SHUT_BOTH and not s.data:
                self.send(s, v.RST)
                s.state = "reset"
                del self.sockets[local, remote]
        elif operation == v.CREDIT_REQUEST:
            self.send(s, v.CREDIT_UPDATE)

    def _data(self, s: FakeSocket, data: bytes) -> None:
        s.received += len(data)
        if s.received - s.forwarded > WINDOW:
            self.faults.append("the device exceeded its credit")
        if s.eof:
            self.faults.append("the device sent after its end")
        if not s.closed:
            s.data += data

    def _requested(self, local: int, remote: int, buffer: int, forwarded: int) -> None:
        if local not in (*guest_peer.SERVICES, guest_peer.DIAL):
            self.raw(v.HEADER.pack(self.front.cid, v.HOST_CID, local, remote, 0, v.TYPE_STREAM, v.RST, 0, 0, 0))
            return
        s = self.sockets[local, remote] = FakeSocket(self, local, remote)
        s.state, s.peer_buffer, s.peer_forwarded = "open", buffer, forwarded
        self.send(s, v.RESPONSE)
        thread = threading.Thread(target=guest_peer.serve_one, args=(s, local, self.connect), daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def close(self) -> None:
        """Stop the stack, hang up, wait for its threads."""
        with self.lock:
            self._stopping = True
            self.changed.notify_all()
        os.eventfd_write(self._wake, 1)
        guest_peer._go.set()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        self.front.close()
        os.close(self._wake)
