"""Copies sparse files: scratch disks and guest memory. Shared blocks where the file system can, else only data."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from voidbox_lab.errors import ProviderError

_FICLONE = 0x40049409
"""ioctl_ficlone(2): btrfs, xfs and a few others; not tmpfs."""
_CHUNK = 64 << 20


def copy_sparse(source: Path | int, target: Path) -> None:
    """Copy `source`, a path or a descriptor, to the new file `target`, mode 0600, holes kept. Blocking.

    Raises:
        ProviderError: the disk is full, or either file cannot be used (cause ``disk``).
    """
    _copy(source, target, os.O_CREAT | os.O_EXCL)


def fill_sparse(source: Path | int, target: Path) -> None:
    """As `copy_sparse`, into a file that is there, empty, and may be mapped already."""
    _copy(source, target, 0)


def _copy(source: Path | int, target: Path, flags: int) -> None:
    try:
        old = os.open(source, os.O_RDONLY | os.O_CLOEXEC) if isinstance(source, Path) else os.dup(source)
        try:
            fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
            try:
                if not _clone(old, fd):
                    _copy_data(old, fd)
            finally:
                os.close(fd)
        finally:
            os.close(old)
    except OSError as error:
        raise ProviderError(
            f"The file {target} could not be made: {error.strerror}; check the space beside it.", cause="disk"
        ) from error


def data_runs(fd: int) -> Iterator[tuple[int, int]]:
    """``(start, end)`` of every stretch of `fd` that is not a hole (lseek(2), SEEK_DATA)."""
    size = os.fstat(fd).st_size
    start = 0
    while start < size:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
        start = end


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False  # not this file system, or not across two of them
    return True


def _copy_data(source: int, target: int) -> None:
    """By sendfile(2): within the kernel, and between any two file systems, unlike copy_file_range(2)."""
    os.ftruncate(target, os.fstat(source).st_size)
    for start, end in data_runs(source):
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            sent = os.sendfile(target, source, start, min(_CHUNK, end - start))
            if not sent:
                return
            start += sent
