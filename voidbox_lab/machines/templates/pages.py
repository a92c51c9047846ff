"""The file a template's memory and scratch disk are kept in: the pages that are not zero, one after another.

    8 bytes   magic
    u64       size of the unpacked file
    u64       number of runs, then per run: u64 offset, u64 length (multiples of `PAGE`, ascending, disjoint)
    …         the runs' data

All numbers little endian. It does not lean on a file system's holes, which a copy may fill, so that the digest of
the file is the digest of the memory. Blocking throughout.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from voidbox_lab.errors import ProviderError
from voidbox_lab.machines.sparse import data_runs

PAGE = 4096
MAGIC = b"VBPAGES1"
MAX_SIZE = 1 << 40
_HEAD = struct.Struct("<8sQQ")
_RUN = struct.Struct("<QQ")
_CHUNK = 4 << 20


class Damaged(ProviderError):
    """The file is not what its digest says, or not such a file at all."""


def pack(source: Path, target: Path) -> str:
    """Write the non-zero pages of `source` to the new file `target` and to its disk; its SHA-256, in hexadecimal.

    Raises:
        OSError: a disk is full, or a file cannot be used.
    """
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ValueError(f"{source} is empty")
        # Read only what is data: a mapped hole of a tmpfs becomes memory when it is looked at.
        with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as data, memoryview(data) as view:
            runs = list(_merged(_used(view, file.fileno())))
            digest = hashlib.sha256()
            with target.open("xb") as out:
                index = _HEAD.pack(MAGIC, size, len(runs)) + b"".join(_RUN.pack(s, e - s) for s, e in runs)
                out.write(index)
                digest.update(index)
                for start, end in runs:
                    for at in range(start, end, _CHUNK):
                        with view[at : min(at + _CHUNK, end)] as part:
                            out.write(part)
                            digest.update(part)
                out.flush()
                os.fsync(out.fileno())
    return digest.hexdigest()


def unpack(source: Path, target: Path, digest: str) -> None:
    """Make the sparse file `target`, new and of mode 0600, from `source`, checked on the way.

    Raises:
        Damaged: the digest is another one, or the format is wrong; `target` is of no use then.
        OSError: a disk is full, or a file cannot be used.
    """
    seen = hashlib.sha256()
    with source.open("rb") as file:

        def read(count: int) -> bytes:
            data = file.read(count)
            if len(data) != count:
                raise Damaged(f"{source} is cut short.", cause="template-damaged")
            seen.update(data)
            return data

        magic, size, count = _HEAD.unpack(read(_HEAD.size))
        if magic != MAGIC or not 0 < size <= MAX_SIZE or count > size // PAGE + 1:
            raise Damaged(f"{source} is not a file of pages.", cause="template-damaged")
        if _RUN.size * count > os.fstat(file.fileno()).st_size:  # before it costs memory
            raise Damaged(f"{source} is cut short.", cause="template-damaged")
        runs = list(_RUN.iter_unpack(read(_RUN.size * count)))
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            last = 0
            for start, length in runs:
                if start < last or not 0 < length <= size - start:
                    raise Damaged(f"{source} holds a run out of range.", cause="template-damaged")
                last = start + length
                for at in range(start, last, _CHUNK):
                    _write(fd, read(min(_CHUNK, last - at)), at)
        finally:
            os.close(fd)
        if file.read(1) or seen.hexdigest() != digest:
            raise Damaged(f"{source} is not what its digest says.", cause="template-damaged")


def _write(fd: int, data: bytes, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:] if done else data, at + done)


def _used(view: memoryview, fd: int) -> Iterator[tuple[int, int]]:
    """Pages, as ``(start, end)``, that hold anything but zeros."""
    zero = bytes(PAGE)
    stop = 0
    for first, end in data_runs(fd):
        # Where blocks are smaller than a page, several runs may begin in one.
        for start in range(max(stop, first - first % PAGE), end, PAGE):
            stop = min(start + PAGE, len(view))
            with view[start:stop] as page:
                # As bytes: comparing those is one memcmp(3), comparing views goes item by item.
                if bytes(page) != zero[: stop - start]:
                    yield start, stop


def _merged(pages: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    begin = end = -1
    for start, stop in pages:
        if start == end:
            end = stop
            continue
        if end > begin:
            yield begin, end
        begin, end = start, stop
    if end > begin:
        yield begin, end
