"""Guest memory as the device sees it: a few shared mappings, every access bounds-checked.

Not for what lies in it: see `virtqueue` and `packets`. Addresses come in two spaces (vhost-user
protocol, "Memory region description"): *guest physical*, used in descriptors, and the front-end's
*user* addresses, used only for the rings themselves.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_REGIONS = 8
"""Regions in one SET_MEM_TABLE (vhost-user protocol: at most 8 without CONFIGURE_MEM_SLOTS)."""
_SPACE = 1 << 64


class MemoryFault(Exception):
    """An address range that is not, or not wholly, guest memory."""


class Region:
    """A stretch of guest memory: `view` is its bytes, `guest` and `user` its first addresses."""

    __slots__ = ("guest", "size", "user", "view")

    def __init__(self, guest: int, user: int, view: memoryview) -> None:
        self.guest, self.user, self.view, self.size = guest, user, view, len(view)


def map_region(guest: int, size: int, user: int, offset: int, fd: int) -> Region:
    """Map `size` bytes from `offset` of the file `fd`, which stays the caller's to close.

    Raises:
        MemoryFault: sizes or addresses that wrap, or a file shorter than it says (touching pages
            past its end would kill this process by SIGBUS).
    """
    if size <= 0 or guest + size > _SPACE or user + size > _SPACE or offset + size > 1 << 62:
        raise MemoryFault(f"memory region of {size:#x} bytes at {guest:#x}, file offset {offset:#x}")
    if os.fstat(fd).st_size < offset + size:
        raise MemoryFault(f"memory file is shorter than its region: {offset + size:#x} bytes wanted")
    lead = offset % mmap.ALLOCATIONGRANULARITY
    try:
        mapping = mmap.mmap(fd, size + lead, offset=offset - lead)
    except (OSError, ValueError) as error:
        raise MemoryFault(f"memory region cannot be mapped: {error}") from None
    # The view alone keeps the mapping alive: it goes with the last chain that points into it.
    return Region(guest, user, memoryview(mapping)[lead : lead + size])


class GuestMemory:
    """An immutable table of regions; SET_MEM_TABLE builds a new one."""

    __slots__ = ("_spans", "regions")

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        # Largest first: nearly every buffer lies in main memory.
        self.regions = sorted(regions, key=lambda region: -region.size)
        self._spans = [(r.guest, r.guest + r.size, r.view) for r in self.regions]

    def view(self, address: int, length: int) -> memoryview:
        """The `length` bytes at guest physical `address`, if one region holds them all; no copy.

        Raises:
            MemoryFault: they are not in one region.
        """
        end = address + length
        for first, last, view in self._spans:
            if first <= address and end <= last:
                return view[address - first : end - first]
        raise MemoryFault(f"guest address {address:#x}, {length} bytes")

    def views(self, address: int, length: int) -> list[memoryview]:
        """As `view`, but the bytes may run across adjoining regions: one view for each.

        Raises:
            MemoryFault: some of them are not guest memory.
        """
        found = []
        while length > 0:
            for first, last, view in self._spans:
                if first <= address < last:
                    part = min(length, last - address)
                    found.append(view[address - first : address - first + part])
                    address, length = address + part, length - part
                    break
            else:
                raise MemoryFault(f"guest address {address:#x}, {length} bytes")
        return found

    def ring(self, user: int, length: int, alignment: int) -> memoryview:
        """The `length` bytes at user address `user`, aligned as VIRTIO 1.2 §2.7 wants.

        Raises:
            MemoryFault: misaligned, or not in one region.
        """
        if user % alignment:
            raise MemoryFault(f"ring address {user:#x} is not {alignment}-byte aligned")
        for region in self.regions:
            start = user - region.user
            if start >= 0 and start + length <= region.size:
                if (region.guest + start) % alignment:
                    break
                return region.view[start : start + length]
        raise MemoryFault(f"ring address {user:#x}, {length} bytes")
