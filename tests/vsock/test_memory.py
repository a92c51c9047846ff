"""Guest memory: nothing outside the table can be reached, whatever the address."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.vsock.memory import GuestMemory, MemoryFault, Region, map_region

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)


def _memory() -> GuestMemory:
    low, high = bytearray(range(256)) * 16, bytearray(8192)
    return GuestMemory(
        [
            Region(0x1000, 0x7000_0000, memoryview(low)),
            Region(0x2000, 0x9000_0000, memoryview(high)),
            Region(1 << 40, 0xA000_0000, memoryview(bytearray(4096))),
        ]
    )


@given(address=U64, length=U32)
def test_view_is_within_one_region_or_refused(address: int, length: int) -> None:
    memory = _memory()
    try:
        view = memory.view(address, length)
    except MemoryFault:
        inside = [r for r in memory.regions if r.guest <= address and address + length <= r.guest + r.size]
        assert not inside
    else:
        assert len(view) == length


@given(address=st.integers(0xF00, 0x4100), length=st.integers(1, 0x4000))
def test_views_join_adjoining_regions(address: int, length: int) -> None:
    """0x1000 to 0x4000 are two regions side by side; a buffer may run across, not out."""
    memory = _memory()
    if address >= 0x1000 and address + length <= 0x4000:
        assert sum(map(len, memory.views(address, length))) == length
    else:
        with pytest.raises(MemoryFault):
            memory.views(address, length)


@given(user=U64, alignment=st.sampled_from([2, 4, 16]))
def test_ring_is_aligned_and_inside(user: int, alignment: int) -> None:
    memory = _memory()
    try:
        assert len(memory.ring(user, 64, alignment)) == 64
    except MemoryFault:
        starts = [user - r.user for r in memory.regions]
        fits = any(0 <= s <= r.size - 64 for s, r in zip(starts, memory.regions, strict=True))
        assert not fits or user % alignment


@given(guest=U64, size=U64, user=U64, offset=U64)
def test_mapping_takes_any_numbers(guest: int, size: int, user: int, offset: int) -> None:
    """A region that wraps or goes past its file is refused; nothing is mapped that could fault."""
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, 8192)
        if offset + size > 8192 or not size or guest + size > 1 << 64 or user + size > 1 << 64:
            with pytest.raises(MemoryFault):
                map_region(guest, size, user, offset, fd)
        else:
            assert map_region(guest, size, user, offset, fd).size == size
    finally:
        os.close(fd)


def test_mapping_with_unaligned_offset_shows_the_right_bytes() -> None:
    fd = os.memfd_create("test")
    try:
        os.pwrite(fd, bytes(5000) + b"here", 0)
        os.ftruncate(fd, 8192)
        region = map_region(0, 100, 0, 5000, fd)
        assert bytes(region.view[:4]) == b"here"
    finally:
        os.close(fd)
