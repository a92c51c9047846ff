"""The device's side of one split virtqueue. Source: VIRTIO 1.2 §2.7.

Not for what the buffers hold. The guest owns the descriptor table and the available ring and may
write them at any time and with anything; so every value is read once, checked, and only the copy is
used. Indirect descriptors are not offered (VIRTIO_F_INDIRECT_DESC), hence refused.

Ring indexes are read and written through ``memoryview.cast("H")``, a single 16-bit access; the
``struct`` module's ``"<H"`` goes byte by byte and could be seen half done by the other side.
"""

from __future__ import annotations

import struct
import sys
from _thread import allocate_lock
from collections import deque
from typing import TYPE_CHECKING

from voidbox_lab.vsock.memory import GuestMemory, MemoryFault

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.byteorder != "little":  # pragma: no cover - rings are little-endian and accessed natively
    raise ImportError("the user-space vsock device needs a little-endian host")

MAX_SIZE = 1024
"""Entries in a ring: QEMU's VIRTQUEUE_MAX_SIZE."""

MAX_VECTORS = 512
"""Pieces in one system call; the kernel takes 1024 (UIO_MAXIOV)."""

_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_NO_INTERRUPT = 1
_DESCRIPTOR = struct.Struct("<QIHH")
_lock = allocate_lock()


def _fence() -> None:
    """A full memory barrier: an uncontended lock is two atomic exchanges, all the standard library has.

    It orders our store of an index before our load of the other side's (§2.7.10, §2.7.13), which x86
    may swap too.
    """
    with _lock:
        pass


class RingFault(Exception):
    """The driver broke the rules of the ring; the queue is stopped until it is set up anew."""


class Chain:
    """One buffer from the driver: `views` in order, `length` bytes in all. `head` names it on return."""

    __slots__ = ("head", "header", "length", "payload", "views")

    def __init__(self, head: int, views: list[memoryview], length: int) -> None:
        self.head, self.views, self.length = head, views, length
        self.header: memoryview | None = None
        self.payload: list[memoryview] = views

    def split(self, size: int) -> bool:
        """Set `header` to the first `size` bytes and `payload` to the rest; False if they are scattered.

        Linux always gives the header in one piece; §2.7.4.1 lets a driver do otherwise.
        """
        first = self.views[0]
        if len(first) < size:
            return False
        self.header = first[:size]
        rest = first[size:]
        self.payload = [rest, *self.views[1:]] if len(rest) else self.views[1:]
        return True

    def scatter(self, data: bytes | bytearray) -> None:
        """Write `data` from the chain's first byte on; it must fit."""
        at = 0
        for view in self.views:
            part = min(len(view), len(data) - at)
            view[:part] = data[at : at + part]
            at += part
            if at == len(data):
                return

    def gather(self, size: int) -> bytes:
        """A copy of the first `size` bytes."""
        out = bytearray()
        for view in self.views:
            out += view[: size - len(out)]
        return bytes(out)


class Virtqueue:
    """Take chains with `stage` and `staged`, give them back with `complete`, show it with `flush`.

    `writable`: True for the queue whose buffers the device fills (rx), False for tx.
    `minimum`: bytes a chain must hold at least, or the ring is at fault.
    """

    def __init__(self, *, writable: bool, minimum: int = 0, maximum: int = 1 << 20) -> None:
        self.writable, self.minimum, self.maximum = writable, minimum, maximum
        self.size = 0
        self.running = False
        self.call: Callable[[], None] | None = None
        """Interrupts the driver; None while the front-end masks it."""
        self.staged: deque[Chain] = deque()
        """Chains taken from the ring and not yet completed, in ring order."""
        self._memory = GuestMemory()
        self._next = self._used_at = self._signalled = 0
        self._event_index = False
        self._dirty = False

    def start(self, memory: GuestMemory, *, rings: tuple[int, int, int], base: int, event_index: bool) -> None:
        """Begin at available index `base`. `rings`: user addresses of descriptors, available, used.

        Raises:
            MemoryFault: a ring is not wholly in guest memory or misaligned.
            RingFault: the size was never set.
        """
        size = self.size
        if not size:
            raise RingFault("the queue has no size")
        descriptors, available, used = rings
        self.staged.clear()
        # With 2 bytes each for used_event and avail_event, which are there even when not negotiated.
        self._descriptors = memory.ring(descriptors, 16 * size, 16)
        self._available = memory.ring(available, 6 + 2 * size, 2).cast("H")
        raw = memory.ring(used, 6 + 8 * size, 4)
        self._used = raw.cast("H")
        self._elements = raw[4 : 4 + 8 * size].cast("I")
        self._memory, self._event_index = memory, event_index
        self._next = base & 0xFFFF
        # The device's own index: read once here, never believed again.
        self._used_at = self._signalled = self._used[1]
        self._dirty, self.running = False, True

    def stop(self) -> int:
        """Let go of the rings; the available index to resume from (unfinished chains are not lost)."""
        base = (self._next - len(self.staged)) & 0xFFFF
        if self.running:
            self.flush()
        self.staged.clear()
        self.running = False
        self._next = base
        self._memory = GuestMemory()
        self._descriptors = self._available = self._used = self._elements = memoryview(b"")
        return base

    def stage(self, limit: int) -> int:
        """Take up to `limit` more chains into `staged`; how many were there.

        Raises:
            RingFault, MemoryFault: the driver lied; `staged` holds what was sound before it.
        """
        size, ring = self.size, self._available
        waiting = (ring[1] - self._next) & 0xFFFF
        if waiting > size:
            raise RingFault(f"{waiting} buffers available in a ring of {size}")
        if waiting == 0:
            return 0
        _fence()
        count = min(limit, waiting)
        for _ in range(count):
            self.staged.append(self._walk(ring[2 + self._next % size]))
            self._next = (self._next + 1) & 0xFFFF
        return count

    def _walk(self, head: int) -> Chain:
        size, memory = self.size, self._memory
        wanted = _WRITE if self.writable else 0
        views: list[memoryview] = []
        total, index = 0, head
        for _ in range(size):
            if index >= size:
                raise RingFault(f"descriptor {index} in a table of {size}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._descriptors, 16 * index)
            if flags & _INDIRECT:
                raise RingFault("indirect descriptor, which was not offered")
            if flags & _WRITE != wanted:
                raise RingFault("descriptor of the wrong direction")
            total += length
            if total > self.maximum:
                raise RingFault(f"chain longer than {self.maximum} bytes")
            if length:
                try:
                    views.append(memory.view(address, length))
                except MemoryFault:
                    views += memory.views(address, length)
            if not flags & _NEXT:
                break
            index = following
        else:
            raise RingFault("descriptor chain with a loop")
        if not views or total < self.minimum:
            raise RingFault(f"chain of {total} bytes where {max(1, self.minimum)} are needed")
        return Chain(head, views, total)

    def complete(self, head: int, written: int) -> None:
        """Return a chain with `written` bytes in it; the driver sees it at the next `flush`."""
        at = 2 * (self._used_at % self.size)
        self._elements[at] = head
        self._elements[at + 1] = written
        self._used_at = (self._used_at + 1) & 0xFFFF
        self._dirty = True

    def flush(self) -> bool:
        """Publish completed chains and interrupt the driver if it wants that; True if interrupted.

        Honours VIRTQ_AVAIL_F_NO_INTERRUPT (§2.7.7) or, where negotiated, used_event (§2.7.10).
        """
        if not self._dirty:
            return False
        self._dirty = False
        _fence()
        new = self._used[1] = self._used_at
        _fence()
        if self._event_index:
            event, old = self._available[2 + self.size], self._signalled
            wanted = (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not self._available[0] & _NO_INTERRUPT
        self._signalled = new
        if wanted and self.call is not None:
            self.call()
        return wanted

    def arm(self) -> bool:
        """Ask for a kick at the next buffer; True if one came meanwhile and no kick will.

        Without the event index kicks are always on: the device never sets VIRTQ_USED_F_NO_NOTIFY.
        """
        if self._event_index:
            self._used[2 + 4 * self.size] = self._next
        _fence()
        return self._available[1] != self._next


def clip(views: list[memoryview], length: int) -> list[memoryview]:
    """The first `length` bytes of `views`."""
    out = []
    for view in views:
        if len(view) >= length:
            out.append(view[:length])
            break
        out.append(view)
        length -= len(view)
    return out
