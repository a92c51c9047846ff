"""Copies a scratch-disk template for one box: shared blocks where the file system can, else only its data."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from voidbox_lab.errors import ProviderError

_FICLONE = 0x40049409
"""ioctl_ficlone(2)."""
_CHUNK = 8 << 20


def copy_sparse(source: Path, target: Path) -> None:
    """Copy `source` to the new file `target`, mode 0600, holes kept. Blocking.

    Raises:
        ProviderError: the disk is full, or either file cannot be used.
    """
    try:
        with source.open("rb") as old:
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if not _clone(old.fileno(), fd):
                    _copy_data(old.fileno(), fd)
            finally:
                os.close(fd)
    except OSError as error:
        raise ProviderError(
            f"The scratch disk {target} could not be made: {error.strerror}; check the space beside it.",
            cause="disk",
        ) from error


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False  # not this file system, or not across two of them
    return True


def _copy_data(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(source, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        while start < end:
            data = os.pread(source, min(_CHUNK, end - start), start)
            if not data:
                return
            start += os.pwrite(target, data, start)
