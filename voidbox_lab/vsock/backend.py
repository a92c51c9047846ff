"""The vhost-user back end: QEMU's requests turned into memory, rings and features.

Not for vsock itself: see `switch`. Source: "Vhost-user Protocol", QEMU's interoperability documents.
The front-end (QEMU) is trusted as much as this process, the guest behind it is not: a ring that lies
is stopped until the driver sets it up again; a message that is malformed ends the device.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from voidbox_lab.vsock import protocol as p
from voidbox_lab.vsock.memory import MAX_REGIONS, GuestMemory, MemoryFault, map_region
from voidbox_lab.vsock.poller import IN
from voidbox_lab.vsock.virtqueue import MAX_SIZE, RingFault, Virtqueue

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from voidbox_lab.vsock.poller import Poller
    from voidbox_lab.vsock.switch import Switch

FEATURES = p.F_VERSION_1 | p.F_PROTOCOL_FEATURES | p.F_EVENT_INDEX
"""No LOG_ALL: dirty pages are not logged, so live migration is not offered (QEMU forbids it anyway)."""
PROTOCOL_FEATURES = p.P_CONFIG | p.P_REPLY_ACK


class _Ring:
    """What the front-end said of one queue; `queue` runs while all of it is there."""

    def __init__(self, queue: Virtqueue) -> None:
        self.queue = queue
        self.addresses: tuple[int, int, int] | None = None
        self.base = self.resume = 0
        self.kick: int | None = None
        self.call: int | None = None
        self.enabled = False
        self.broken = False


class Backend:
    """Serves one front-end on `sock`. `done` becomes True when it is gone."""

    def __init__(self, poller: Poller, sock: socket.socket, switch: Switch, log: Callable[[str], None]) -> None:
        self.done = False
        self._poller, self._sock, self._switch, self._log = poller, sock, switch, log
        self._reader = p.Reader(sock)
        self._features = self._protocol_features = 0
        self._memory = GuestMemory()
        self._rings = (_Ring(switch.rx), _Ring(switch.tx))
        sock.setblocking(False)
        poller.add(sock, IN, self._readable)

    def turn(self) -> bool:
        """One turn of the switch; True if more waits. A lying ring is stopped and logged."""
        try:
            return self._switch.turn()
        except (RingFault, MemoryFault) as fault:
            # Which of the two lied does not matter: neither is of use without the other.
            self._log(f"the guest's rings are at fault: {fault}; device stopped until its driver restarts")
            for ring in self._rings:
                ring.broken = True
                self._stop(ring)
            self._switch.reset()
            return False

    def close(self) -> None:
        """Let go of rings, memory and descriptors."""
        self.done = True
        for ring in self._rings:
            self._stop(ring)
            self._set_kick(ring, None)
            self._set_call(ring, None)
        self._memory = GuestMemory()
        self._reader.close()
        self._poller.discard(self._sock)

    def _readable(self, _events: int) -> None:
        try:
            while not self.done and (message := self._reader.receive()) is not None:
                try:
                    self._serve(message)
                finally:
                    message.close()
        except EOFError:
            self.close()
        except (p.ProtocolError, OSError) as error:
            self._log(f"vhost-user connection given up: {error}")
            self.close()

    def _serve(self, message: p.Message) -> None:
        request = message.request
        answer: bytes | None = None
        failed = False
        if request == p.GET_FEATURES:
            answer = p.U64.pack(FEATURES)
        elif request == p.GET_PROTOCOL_FEATURES:
            answer = p.U64.pack(PROTOCOL_FEATURES)
        elif request == p.GET_QUEUE_NUM:
            answer = p.U64.pack(len(self._rings))
        elif request == p.GET_CONFIG:
            answer = self._config(message)
        elif request == p.GET_VRING_BASE:
            answer = self._base(message)
        else:
            try:
                handler = self._HANDLERS.get(request)
                if handler is None:
                    failed = True
                else:
                    handler(self, message)
            except (MemoryFault, RingFault) as fault:
                self._log(f"request {request} refused: {fault}")
                failed = True
            if message.flags & p.NEED_REPLY and self._protocol_features & p.P_REPLY_ACK:
                answer = p.U64.pack(int(failed))
        if answer is not None:
            self._reply(p.reply(request, answer))

    def _reply(self, data: bytes) -> None:
        # A few bytes into a socket whose other end waits for them: short only if it is broken.
        if self._sock.send(data) != len(data):
            raise p.ProtocolError("the front-end does not read its replies")

    # -- requests ------------------------------------------------------------------------------

    def _set_features(self, message: p.Message) -> None:
        (self._features,) = message.unpack(p.U64)
        if self._features & ~FEATURES:
            raise p.ProtocolError(f"features {self._features:#x} were not offered")
        if not self._features & p.F_PROTOCOL_FEATURES:
            # Without that bit rings need no SET_VRING_ENABLE ("Ring states").
            for ring in self._rings:
                ring.enabled = True

    def _set_protocol_features(self, message: p.Message) -> None:
        (self._protocol_features,) = message.unpack(p.U64)
        if self._protocol_features & ~PROTOCOL_FEATURES:
            raise p.ProtocolError(f"protocol features {self._protocol_features:#x} were not offered")

    def _set_memory(self, message: p.Message) -> None:
        count, _ = message.unpack(p.MEM_HEADER)
        if count > MAX_REGIONS or len(message.payload) < p.MEM_HEADER.size + count * p.MEM_REGION.size:
            raise p.ProtocolError(f"memory table of {count} regions in {len(message.payload)} bytes")
        if len(message.fds) != count:
            raise p.ProtocolError(f"{len(message.fds)} descriptors for {count} memory regions")
        regions = []
        for index in range(count):
            at = p.MEM_HEADER.size + index * p.MEM_REGION.size
            guest, size, user, offset = p.MEM_REGION.unpack_from(message.payload, at)
            regions.append(map_region(guest, size, user, offset, message.fds[index]))
        # Rings are named by user address and stay where they are; their mappings do not.
        for ring in self._rings:
            if ring.queue.running:
                ring.base = ring.resume = ring.queue.stop()
        self._memory = GuestMemory(regions)
        for ring in self._rings:
            self._start(ring)

    def _set_size(self, message: p.Message) -> None:
        ring, size = self._ring(message)
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise p.ProtocolError(f"queue size {size}")
        if ring.queue.running:
            raise p.ProtocolError("size of a running queue")
        ring.queue.size = size

    def _set_addresses(self, message: p.Message) -> None:
        index, _flags, descriptors, used, available, _log = message.unpack(p.VRING_ADDR)
        ring = self._by_index(index)
        self._stop(ring)
        ring.addresses = descriptors, available, used
        self._start(ring)

    def _set_base(self, message: p.Message) -> None:
        ring, base = self._ring(message)
        self._stop(ring)
        if base != ring.resume:
            # Not where it was left: a new driver, or the old one after a reset. A paused machine
            # goes on with the same index, and its connections with it.
            self._switch.reset()
        ring.base, ring.broken = base & 0xFFFF, False

    def _base(self, message: p.Message) -> bytes:
        ring, _ = self._ring(message)
        self._stop(ring)
        self._set_kick(ring, None)
        ring.resume = ring.base
        if self._features & p.F_PROTOCOL_FEATURES:
            ring.enabled = False
        return p.VRING.pack(self._rings.index(ring), ring.base)

    def _set_kick_fd(self, message: p.Message) -> None:
        ring, fd = self._vring_fd(message)
        self._stop(ring)
        self._set_kick(ring, fd)
        self._start(ring)

    def _set_call_fd(self, message: p.Message) -> None:
        ring, fd = self._vring_fd(message)
        self._set_call(ring, fd)

    def _set_enable(self, message: p.Message) -> None:
        ring, enabled = self._ring(message)
        ring.enabled = bool(enabled)
        if enabled:
            self._start(ring)
        else:
            self._stop(ring)

    def _reset_owner(self, _message: p.Message) -> None:
        for ring in self._rings:
            self._stop(ring)
            ring.enabled = False

    def _ignore(self, _message: p.Message) -> None:
        """Nothing to do, and rightly so."""

    def _config(self, message: p.Message) -> bytes:
        # struct virtio_vsock_config, VIRTIO 1.2 §5.10.4: guest_cid alone.
        offset, size, flags = message.unpack(p.CONFIG)
        space = p.U64.pack(self._switch.cid)
        if offset + size > len(space):
            return b""  # "zero length payload indicates an error"
        return p.CONFIG.pack(offset, size, flags) + space[offset : offset + size]

    _HANDLERS = {  # noqa: RUF012 - typing.ClassVar would have the device process load typing
        p.SET_FEATURES: _set_features,
        p.SET_PROTOCOL_FEATURES: _set_protocol_features,
        p.SET_OWNER: _ignore,
        p.RESET_OWNER: _reset_owner,
        p.SET_MEM_TABLE: _set_memory,
        p.SET_VRING_NUM: _set_size,
        p.SET_VRING_ADDR: _set_addresses,
        p.SET_VRING_BASE: _set_base,
        p.SET_VRING_KICK: _set_kick_fd,
        p.SET_VRING_CALL: _set_call_fd,
        p.SET_VRING_ERR: _ignore,
        p.SET_VRING_ENABLE: _set_enable,
    }

    # -- rings ---------------------------------------------------------------------------------

    def _by_index(self, index: int) -> _Ring:
        if index >= len(self._rings):
            raise p.ProtocolError(f"queue {index} of {len(self._rings)}")
        return self._rings[index]

    def _ring(self, message: p.Message) -> tuple[_Ring, int]:
        index, value = message.unpack(p.VRING)
        return self._by_index(index), value

    def _vring_fd(self, message: p.Message) -> tuple[_Ring, int | None]:
        (value,) = message.unpack(p.U64)
        ring = self._by_index(value & 0xFF)
        fd = None if value & p.NO_FD else message.take_fd()
        if fd is not None:
            os.set_blocking(fd, False)
        return ring, fd

    def _start(self, ring: _Ring) -> None:
        if ring.queue.running or ring.broken or not ring.enabled:
            return
        if ring.kick is None or ring.addresses is None or not self._memory.regions:
            return
        ring.queue.start(
            self._memory,
            rings=ring.addresses,
            base=ring.base,
            event_index=bool(self._features & p.F_EVENT_INDEX),
        )

    def _stop(self, ring: _Ring) -> None:
        if ring.queue.running:
            ring.base = ring.queue.stop()

    def _set_kick(self, ring: _Ring, fd: int | None) -> None:
        if ring.kick is not None:
            self._poller.discard(ring.kick)
        ring.kick = fd
        if fd is not None:
            self._poller.add(fd, IN, lambda _events: _drain(fd))

    def _set_call(self, ring: _Ring, fd: int | None) -> None:
        if ring.call is not None:
            os.close(ring.call)
        ring.call = fd
        ring.queue.call = None if fd is None else lambda: _signal(fd)


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)


def _signal(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
