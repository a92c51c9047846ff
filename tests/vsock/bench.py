"""A `Switch` on a table: rings in plain memory, sockets in a directory, no process, no thread.

For tests that want each step under their hands; `fake_guest` is for those that want a whole guest.
"""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from voidbox_lab.vsock import packets as v
from voidbox_lab.vsock.memory import GuestMemory, Region
from voidbox_lab.vsock.poller import Poller
from voidbox_lab.vsock.switch import Switch
from voidbox_lab.vsock.virtqueue import Virtqueue

from .fake_driver import HIGH, HIGH_SIZE, LOW_SIZE, USER_BASE, DriverQueue

CID = 5
FIELDS = ("source", "target", "remote", "local", "length", "kind", "operation", "flags", "buffer", "forwarded")


class Bench:
    """Guest and host of one switch. Ports as in the packets: `host` is ours, `guest` the driver's."""

    def __init__(self, directory: Path, *, buffers: int = 32) -> None:
        self.path = directory / "vs"
        raw = bytearray(LOW_SIZE + HIGH_SIZE)
        memory = memoryview(raw)
        self.memory = GuestMemory(
            [
                Region(0, USER_BASE, memory[:LOW_SIZE]),
                Region(HIGH, USER_BASE + HIGH, memory[LOW_SIZE:]),
            ]
        )
        front: Any = SimpleNamespace(
            event_index=True,
            view=lambda at, size: memory[at if at < HIGH else at - HIGH + LOW_SIZE :][:size],
        )
        self.rx, self.tx = DriverQueue(front, 0, 0x10000, 128), DriverQueue(front, 1, 0x40000, 128)
        self.poller = Poller()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(str(self.path))
        listener.listen(64)
        self.switch = Switch(self.poller, cid=CID, path=str(self.path), listener=listener)
        for queue, driver in ((self.switch.rx, self.rx), (self.switch.tx, self.tx)):
            self._start(queue, driver)
        self._view = front.view
        self._posted: dict[int, int] = {}
        self._slots = list(range(45))
        self._slot_of: dict[int, int] = {}
        self._free = [HIGH + (4 << 10) + 4200 * n for n in range(64)]
        self.post(buffers)

    def _start(self, queue: Virtqueue, driver: DriverQueue) -> None:
        queue.size = driver.size
        descriptors, available, used = (USER_BASE + at for at in driver.rings)
        queue.start(self.memory, rings=(descriptors, available, used), base=0, event_index=True)

    def post(self, count: int) -> None:
        """More receive buffers."""
        for _ in range(count):
            at = self._free.pop()
            head = self.rx.add([(at, v.HEADER_SIZE), (at + v.HEADER_SIZE, 4096)], writable=True)
            assert head is not None
            self._posted[head] = at

    def raw(self, packet: bytes) -> None:
        """Bytes into the tx ring; a long packet in two pieces, as Linux does."""
        for head, _ in self.tx.reap():
            self._slots.append(self._slot_of.pop(head))
        slot = self._slots.pop()
        at = HIGH + (1 << 20) + slot * ((1 << 16) + 64)
        packet = packet[: (1 << 16) + 64]
        self._view(at, len(packet))[:] = packet
        pieces = [(at, min(44, len(packet)))] + ([(at + 44, len(packet) - 44)] if len(packet) > 44 else [])
        head = self.tx.add(pieces, writable=False)
        assert head is not None
        self._slot_of[head] = slot

    def says(
        self,
        operation: int,
        *,
        host: int,
        guest: int,
        data: bytes = b"",
        flags: int = 0,
        buffer: int = 1 << 18,
        forwarded: int = 0,
        **odd: int,
    ) -> list[SimpleNamespace]:
        """One packet from the guest, and what comes back; `odd` overrides other header fields."""
        header = v.HEADER.pack(
            odd.get("source", CID), odd.get("target", v.HOST_CID), guest, host, odd.get("length", len(data)),
            odd.get("kind", v.TYPE_STREAM), operation, flags, buffer, forwarded,
        )  # fmt: skip
        self.raw(header + data)
        return self.settle()

    def settle(self, *, again: bool = True) -> list[SimpleNamespace]:
        """Let the switch work until it rests (which it must), and take what it sent the guest."""
        for _ in range(500):
            events = self.poller.wait(0)
            more = self.switch.turn()
            self.poller.sweep()
            if not more and not events:
                break
        else:
            raise AssertionError("the switch does not come to rest")
        return self.take(again=again)

    def take(self, *, again: bool = True) -> list[SimpleNamespace]:
        """Packets in the rx ring; their buffers are posted anew unless told otherwise."""
        out = []
        for head, written in self.rx.reap():
            at = self._posted.pop(head)
            self._free.append(at)
            packet = bytes(self._view(at, written))
            fields = dict(zip(FIELDS, v.HEADER.unpack_from(packet), strict=True))
            out.append(SimpleNamespace(**fields, data=packet[v.HEADER_SIZE :]))
            assert len(packet) == v.HEADER_SIZE + fields["length"]
            if again:
                self.post(1)
        return out

    def client(self, line: bytes = b"CONNECT 7\n") -> socket.socket:
        """A host client that said `line`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(2)
        sock.connect(str(self.path))
        sock.sendall(line)
        return sock

    def listen(self, port: int, backlog: int = 8) -> socket.socket:
        """A host listener on `port`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(2)
        sock.bind(f"{self.path}_{port}")
        sock.listen(backlog)
        return sock

    def dialled(self) -> tuple[socket.socket, int]:
        """A host client connected to guest port 7, and its host port."""
        sock = self.client()
        (request,) = self.settle()
        assert (request.operation, request.local) == (v.REQUEST, 7)
        self.says(v.RESPONSE, host=request.remote, guest=7)
        assert sock.recv(32) == b"OK %d\n" % request.remote
        return sock, request.remote

    def close(self) -> None:
        """Close all, and check that no descriptor of the switch is left."""
        self.switch.close()
        self.poller.close()
        self.rx.close()
        self.tx.close()
        for path in self.path.parent.glob("vs*"):
            path.unlink()
