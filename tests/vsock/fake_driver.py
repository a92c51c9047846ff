"""The other side of a vhost-user vsock device, without a VM: QEMU's messages and the driver's rings.

`FrontEnd` speaks vhost-user over a socket with memfd memory and eventfds; `DriverQueue` is the
driver's half of a split virtqueue (VIRTIO 1.2 §2.7), which honours the device's notification
suppression, so a device that forgets to ask for a kick hangs here as it would with Linux.
Raw access (`memory`, `poke`) is there for tests that misbehave.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct

from voidbox_lab.vsock import protocol as p

USER_BASE = 0x7F12_3456_0000_0000
HIGH = 1 << 32
"""Guest address of the second region, as main memory above the 32-bit hole."""
LOW_SIZE, HIGH_SIZE = 4 << 20, 4 << 20
_PAGE = 4096


class FrontEnd:
    """Connects as QEMU does, negotiates, shares memory. Memory is `low` at 0 and `high` at 4 GiB."""

    def __init__(self, sock: socket.socket, *, event_index: bool = True, size: int = 128) -> None:
        self.sock = sock
        self.event_index = event_index
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, LOW_SIZE + HIGH_SIZE)
        self.map = mmap.mmap(self.fd, LOW_SIZE + HIGH_SIZE)
        self.memory = memoryview(self.map)
        self.features = p.U64.unpack(self.ask(p.GET_FEATURES))[0]
        wanted = p.F_VERSION_1 | p.F_PROTOCOL_FEATURES | (p.F_EVENT_INDEX if event_index else 0)
        assert self.features & wanted == wanted
        self.protocol_features = p.U64.unpack(self.ask(p.GET_PROTOCOL_FEATURES))[0]
        self.tell(p.SET_PROTOCOL_FEATURES, p.U64.pack(self.protocol_features))
        self.tell(p.SET_OWNER)
        self.tell(p.SET_FEATURES, p.U64.pack(wanted))
        config = self.ask(p.GET_CONFIG, p.CONFIG.pack(0, 8, 0) + bytes(8))
        self.cid = p.U64.unpack_from(config, p.CONFIG.size)[0]
        self.share_memory()
        # Rings in low memory, buffers in high.
        self.rx = DriverQueue(self, 0, 0x10000, size)
        self.tx = DriverQueue(self, 1, 0x40000, size)

    def tell(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """Send and wait for the acknowledgement; raise if it is a refusal."""
        code = self.try_tell(request, payload, fds)
        assert code == 0, f"request {request} refused"

    def try_tell(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> int:
        """Send and wait for the acknowledgement, which is returned (0 before REPLY_ACK is negotiated)."""
        acknowledged = request not in (p.SET_PROTOCOL_FEATURES, p.SET_OWNER) and hasattr(self, "protocol_features")
        self._send(request, payload, fds, p.VERSION | (p.NEED_REPLY if acknowledged else 0))
        return int(p.U64.unpack(self._receive(request))[0]) if acknowledged else 0

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        """Send and return the reply's payload."""
        self._send(request, payload, (), p.VERSION)
        return self._receive(request)

    def _send(self, request: int, payload: bytes, fds: tuple[int, ...], flags: int) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([p.encode(request, payload, flags)], ancillary)

    def _receive(self, request: int) -> bytes:
        header = self.sock.recv(p.HEADER.size, socket.MSG_WAITALL)
        if len(header) < p.HEADER.size:
            raise EOFError("the device hung up")
        got, flags, size = p.HEADER.unpack(header)
        assert (got, flags) == (request, p.VERSION | p.REPLY)
        return self.sock.recv(size, socket.MSG_WAITALL) if size else b""

    def share_memory(self) -> None:
        """SET_MEM_TABLE with both regions; may be sent again at any time."""
        payload = p.MEM_HEADER.pack(2, 0)
        payload += p.MEM_REGION.pack(0, LOW_SIZE, USER_BASE, 0)
        payload += p.MEM_REGION.pack(HIGH, HIGH_SIZE, USER_BASE + HIGH, LOW_SIZE)
        self.tell(p.SET_MEM_TABLE, payload, (self.fd, self.fd))

    def view(self, guest: int, size: int) -> memoryview:
        """The bytes at a guest address."""
        at = guest if guest < LOW_SIZE else guest - HIGH + LOW_SIZE
        return self.memory[at : at + size]

    def start(self) -> None:
        """Set up and enable both queues."""
        for queue in (self.rx, self.tx):
            queue.set_up()

    def close(self) -> None:
        """Hang up as a dying QEMU does."""
        self.sock.close()
        for queue in (self.rx, self.tx):
            queue.close()
        os.close(self.fd)


class DriverQueue:
    """One queue as its driver has it. Descriptors of a chain are freed when it comes back."""

    def __init__(self, front: FrontEnd, index: int, at: int, size: int) -> None:
        self.front, self.index, self.size = front, index, size
        self.rings = at, at + 0x8000, at + 0x10000
        self.descriptors = front.view(self.rings[0], 16 * size)
        self.available = front.view(self.rings[1], 6 + 2 * size).cast("H")
        self.used = front.view(self.rings[2], 6 + 8 * size).cast("H")
        self.elements = front.view(self.rings[2] + 4, 8 * size).cast("I")
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.next = self.seen = self.kicked = 0
        self.kicks = self.suppressed = 0

    def set_up(self, base: int = 0) -> None:
        """As vhost_virtqueue_start in QEMU: size, base, addresses, kick, call, enable."""
        i, front = self.index, self.front
        front.tell(p.SET_VRING_NUM, p.VRING.pack(i, self.size))
        front.tell(p.SET_VRING_BASE, p.VRING.pack(i, base))
        descriptors, available, used = (USER_BASE + at for at in self.rings)
        front.tell(p.SET_VRING_ADDR, p.VRING_ADDR.pack(i, 0, descriptors, used, available, 0))
        front.tell(p.SET_VRING_KICK, p.U64.pack(i), (self.kick,))
        front.tell(p.SET_VRING_CALL, p.U64.pack(i), (self.call,))
        front.tell(p.SET_VRING_ENABLE, p.VRING.pack(i, 1))

    def stop(self) -> int:
        """GET_VRING_BASE: where to resume."""
        return int(p.VRING.unpack(self.front.ask(p.GET_VRING_BASE, p.VRING.pack(self.index, 0)))[1])

    def describe(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        """Write one descriptor, whatever it says."""
        struct.pack_into("<QIHH", self.descriptors, 16 * index, address, length, flags, following)

    def add(self, pieces: list[tuple[int, int]], *, writable: bool) -> int | None:
        """Make a chain of (guest address, length) available; its head, or None when the table is full."""
        if len(self.free) < len(pieces):
            return None
        indexes = [self.free.pop() for _ in pieces]
        for n, (address, length) in enumerate(pieces):
            last = n == len(pieces) - 1
            flags = (2 if writable else 0) | (0 if last else 1)
            self.describe(indexes[n], address, length, flags, 0 if last else indexes[n + 1])
        self.chains[indexes[0]] = indexes
        self.publish(indexes[0])
        return indexes[0]

    def publish(self, head: int) -> None:
        """Put `head` on the available ring."""
        self.available[2 + self.next % self.size] = head
        self.next = (self.next + 1) & 0xFFFF
        self.available[1] = self.next

    def notify(self, *, force: bool = False) -> None:
        """Kick, if the device wants one."""
        new, old = self.next, self.kicked
        self.kicked = new
        if self.front.event_index:
            event = self.used[2 + 4 * self.size]
            wanted = (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not self.used[0] & 1
        if wanted or force:
            self.kicks += 1
            os.eventfd_write(self.kick, 1)
        else:
            self.suppressed += 1

    def reap(self) -> list[tuple[int, int]]:
        """Chains that came back: (head, bytes written), their descriptors free again."""
        back = []
        while self.seen != self.used[1]:
            at = 2 * (self.seen % self.size)
            head, written = self.elements[at], self.elements[at + 1]
            self.free += self.chains.pop(head)
            back.append((head, written))
            self.seen = (self.seen + 1) & 0xFFFF
            if self.front.event_index:
                # used_event: interrupt at the next one (§2.7.7).
                self.available[2 + self.size] = self.seen
        return back

    def close(self) -> None:
        """Close the eventfds."""
        os.close(self.kick)
        os.close(self.call)
