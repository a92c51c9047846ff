"""One virtqueue against a driver that writes anything anywhere."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox_lab.vsock.memory import GuestMemory, MemoryFault, Region
from voidbox_lab.vsock.virtqueue import RingFault, Virtqueue

SIZE = 8
BASE = 0x10000
DESCRIPTORS, AVAILABLE, USED, BUFFERS = 0, 0x1000, 0x2000, 0x3000


class Ring:
    """A queue over 64 KiB of memory, with the driver's fields within reach."""

    def __init__(self, *, writable: bool = False, event_index: bool = False, minimum: int = 0) -> None:
        self.raw = bytearray(0x10000)
        self.memory = GuestMemory([Region(0, BASE, memoryview(self.raw))])
        self.calls = 0
        self.queue = Virtqueue(writable=writable, minimum=minimum)
        self.queue.size = SIZE
        self.queue.call = self._called
        rings = BASE + DESCRIPTORS, BASE + AVAILABLE, BASE + USED
        self.queue.start(self.memory, rings=rings, base=0, event_index=event_index)

    def _called(self) -> None:
        self.calls += 1

    def describe(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.raw, DESCRIPTORS + 16 * index, address, length, flags, following)

    def offer(self, *heads: int, index: int | None = None) -> None:
        (at,) = struct.unpack_from("<H", self.raw, AVAILABLE + 2)
        for head in heads:
            struct.pack_into("<H", self.raw, AVAILABLE + 4 + 2 * (at % SIZE), head)
            at = (at + 1) & 0xFFFF
        struct.pack_into("<H", self.raw, AVAILABLE + 2, at if index is None else index)

    def used(self) -> int:
        return int(struct.unpack_from("<H", self.raw, USED + 2)[0])

    def element(self, at: int) -> tuple[int, ...]:
        return struct.unpack_from("<II", self.raw, USED + 4 + 8 * at)


def test_a_chain_is_read_in_order_and_returned() -> None:
    ring = Ring()
    ring.raw[BUFFERS : BUFFERS + 6] = b"abcdef"
    ring.describe(3, BUFFERS, 2, 1, 5)
    ring.describe(5, BUFFERS + 2, 4)
    ring.offer(3)
    assert ring.queue.stage(10) == 1
    chain = ring.queue.staged.popleft()
    assert chain.gather(6) == b"abcdef"
    ring.queue.complete(chain.head, 0)
    assert ring.used() == 0, "nothing is shown before flush"
    assert ring.queue.flush()
    assert (ring.used(), ring.element(0), ring.calls) == (1, (3, 0), 1)
    assert not ring.queue.flush(), "and nothing twice"


@pytest.mark.parametrize(
    ("descriptors", "fault"),
    [
        ([(0, BUFFERS, 4, 1, 0)], "loop"),
        ([(0, BUFFERS, 4, 1, 1), (1, BUFFERS, 4, 1, 0)], "loop"),
        ([(0, BUFFERS, 4, 1, SIZE)], "table"),
        ([(0, BUFFERS, 16, 4, 0)], "indirect"),
        ([(0, BUFFERS, 4, 2, 0)], "direction"),
        ([(0, BUFFERS, 0, 0, 0)], "chain of 0"),
        ([(0, BUFFERS, 0xFFFFFFFF, 0, 0)], "longer"),
        ([(0, 0xFFFFFFFFFFFFFFF0, 64, 0, 0)], "guest address"),
        ([(0, 0xFFF0, 64, 0, 0)], "guest address"),
    ],
)
def test_lies_are_faults(descriptors: list[tuple[int, int, int, int, int]], fault: str) -> None:
    ring = Ring()
    for descriptor in descriptors:
        ring.describe(*descriptor)
    ring.offer(0)
    with pytest.raises((RingFault, MemoryFault), match=fault):
        ring.queue.stage(1)
    assert ring.queue.stop() == 0


def test_head_outside_the_table() -> None:
    ring = Ring()
    ring.offer(SIZE)
    with pytest.raises(RingFault, match="table"):
        ring.queue.stage(1)


@given(index=st.integers(SIZE + 1, 0xFFFF))
def test_available_index_may_not_run_ahead(index: int) -> None:
    ring = Ring()
    ring.offer(index=index)
    with pytest.raises(RingFault, match="available"):
        ring.queue.stage(1)


def test_indexes_wrap() -> None:
    """65536 and more buffers pass; the event index interrupts exactly once each when asked to."""
    for event_index in (False, True):
        ring = Ring(event_index=event_index)
        ring.describe(0, BUFFERS, 4)
        for n in range(70_000):
            ring.offer(0)
            if event_index:
                struct.pack_into("<H", ring.raw, AVAILABLE + 4 + 2 * SIZE, n & 0xFFFF)
            assert ring.queue.stage(4) == 1
            ring.queue.complete(ring.queue.staged.popleft().head, 0)
            assert ring.queue.flush()
        assert ring.used() == 70_000 & 0xFFFF
        assert ring.calls == 70_000


def test_suppression_is_honoured() -> None:
    flags, event = Ring(), Ring(event_index=True)
    for ring in (flags, event):
        ring.describe(0, BUFFERS, 4)
        ring.offer(0)
        struct.pack_into("<H", ring.raw, AVAILABLE, 1)  # NO_INTERRUPT; ignored with the event index
        struct.pack_into("<H", ring.raw, AVAILABLE + 4 + 2 * SIZE, 5)  # used_event: not before the sixth
        ring.queue.stage(1)
        ring.queue.complete(ring.queue.staged.popleft().head, 0)
        assert not ring.queue.flush()
        assert ring.used() == 1
        assert ring.calls == 0


def test_arm_tells_of_what_came_meanwhile() -> None:
    ring = Ring(event_index=True)
    assert not ring.queue.arm()
    ring.describe(0, BUFFERS, 4)
    ring.offer(0)
    assert ring.queue.arm()
    ring.queue.stage(1)
    assert not ring.queue.arm()
    assert struct.unpack_from("<H", ring.raw, USED + 4 + 8 * SIZE) == (1,)


def test_unfinished_chains_are_taken_again_after_a_stop() -> None:
    ring = Ring()
    for index in range(4):
        ring.describe(index, BUFFERS, 4)
    ring.offer(0, 1, 2, 3)
    assert ring.queue.stage(3) == 3
    ring.queue.complete(ring.queue.staged.popleft().head, 0)
    assert ring.queue.stop() == 1
    assert ring.queue.stop() == 1
    assert ring.used() == 1


@settings(max_examples=300)
@given(
    table=st.binary(min_size=16 * SIZE, max_size=16 * SIZE),
    sane=st.lists(
        st.tuples(
            st.sampled_from([BUFFERS, 0xFFFF, 0, AVAILABLE, 1 << 63]),
            st.sampled_from([0, 1, 44, 4096, 70_000, 0xFFFFFFFF]),
            st.integers(0, 7),
            st.integers(0, SIZE),
        ),
        max_size=SIZE,
    ),
    heads=st.lists(st.integers(0, SIZE), max_size=SIZE),
    writable=st.booleans(),
)
def test_any_table_ends_in_chains_or_a_fault(
    table: bytes, sane: list[tuple[int, int, int, int]], heads: list[int], writable: bool
) -> None:
    """Whatever the descriptors say: bounded work, views inside memory, or a fault."""
    ring = Ring(writable=writable)
    ring.raw[DESCRIPTORS : DESCRIPTORS + len(table)] = table
    for index, descriptor in enumerate(sane):
        ring.describe(index, *descriptor)
    ring.offer(*heads)
    try:
        count = ring.queue.stage(SIZE)
    except (RingFault, MemoryFault):
        count = len(ring.queue.staged)
    assert len(ring.queue.staged) == count <= len(heads)
    for chain in ring.queue.staged:
        assert 0 < chain.length == sum(map(len, chain.views)) <= ring.queue.maximum
        assert len(chain.views) <= SIZE
