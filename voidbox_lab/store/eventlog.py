"""A run's events as lines of JSON in one append-only file, and an index to seek by. Not for records.

``events.jsonl`` begins with a header line; then each line is a `codec.Line`. The lines of one append are a
batch, written by one `pwrite`; a batch whose last line is missing was torn and counts as never written.
``events.index`` holds the offset of every `STRIDE`-th event as a little-endian 64-bit number; it is made
again from the lines where it is missing or wrong.

Blocking; one writer at a time. Readers may run beside it: they look no further than an `Extent` goes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from voidbox_lab.errors import ProviderError
from voidbox_lab.spec.events import Event
from voidbox_lab.store.codec import event_of
from voidbox_lab.store.contract import MAX_EVENT_BYTES

STRIDE = 256
"""Events from one entry of the index to the next; a read skips fewer lines than that."""
MAX_LINE = MAX_EVENT_BYTES + 64 * 1024
_OFFSET = struct.Struct("<Q")


@dataclass(frozen=True)
class Extent:
    """How far the log goes: whole batches only."""

    count: int
    """Events."""
    size: int
    """Bytes of the file, header included."""


class EventLog:
    """The log in the directory `place`, of the run `run`."""

    def __init__(self, place: Path, run: str) -> None:
        self.run = run
        self._events, self._index = place / "events.jsonl", place / "events.index"

    def create(self, header: dict[str, Any]) -> Extent:
        """A new log without events, on the disk when this returns."""
        line = json.dumps(header).encode() + b"\n"
        self._index.touch(0o600)
        file = os.open(self._events, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            _write(file, line, 0)
            os.fsync(file)
        finally:
            os.close(file)
        return Extent(0, len(line))

    def header(self) -> tuple[dict[str, Any], Extent]:
        """What `create` was given, and the extent of a log with nothing else. `ProviderError` if damaged."""
        with self._open() as file:
            line = file.readline(MAX_LINE)
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict) or not line.endswith(b"\n"):
            raise self._damaged("its first line is no header")
        return value, Extent(0, len(line))

    def size(self) -> int:
        """Bytes that the file has, whole batches or not."""
        return self._events.stat().st_size

    def append(self, extent: Extent, lines: Sequence[bytes]) -> Extent:
        """Write `lines`, a batch, behind `extent`: all of them or, with an OSError, none.

        In the page cache when this returns, as with any write(2): the death of this process loses nothing.
        """
        data = b"".join(lines)
        file = os.open(self._events, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            found = os.fstat(file).st_size
            if found < extent.size:
                raise self._damaged(f"it has {found} bytes and should have {extent.size}")
            if found > extent.size:  # left by a write that failed and could not be undone
                os.ftruncate(file, extent.size)
            try:
                _write(file, data, extent.size)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(file, extent.size)
                raise
        finally:
            os.close(file)
        with suppress(OSError):  # the index is made again when it is wanted
            self._note(extent, lines)
        return Extent(extent.count + len(lines), extent.size + len(data))

    def sync(self) -> None:
        """Have the events on the disk, also for a power failure (fdatasync(2))."""
        file = os.open(self._events, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            os.fdatasync(file)
        finally:
            os.close(file)

    def read(self, extent: Extent, after: int, limit: int) -> list[Event]:
        """Events with ``seq > after``, at most `limit`, none beyond `extent`.

        Raises:
            ProviderError: cause ``store``: a line there is not what was written.
        """
        after = max(0, after)
        if after >= extent.count or limit <= 0:
            return []
        with self._open() as file:
            offset = self._seek(after // STRIDE)
            events = self._lines(file, offset, after, min(extent.count, after + limit)) if offset else None
            if events is None:  # the index lacks an entry, or points somewhere else
                self._reindex(file, extent)
                offset = self._seek(after // STRIDE)
                events = self._lines(file, offset, after, min(extent.count, after + limit)) if offset else None
        if events is None:
            raise self._damaged(f"the lines behind event {after} are not the events that belong there")
        return events

    def batches(self, extent: Extent) -> Iterator[tuple[list[Event], Extent]]:
        """Whole batches behind `extent`, each with the extent after it, up to the first line that is wrong."""
        with self._open() as file:
            file.seek(extent.size)
            pending: list[Event] = []
            seq, size = extent.count, extent.size
            while (line := file.readline(MAX_LINE)).endswith(b"\n"):
                try:
                    event, batch = event_of(self.run, line)
                except ValidationError:
                    return
                seq, size = seq + 1, size + len(line)
                if event.seq != seq or batch < seq:
                    return
                pending.append(event)
                if batch == seq:
                    yield pending, Extent(seq, size)
                    pending = []

    def cut(self, extent: Extent) -> int:
        """Remove what is behind `extent`, the rest of a torn write; how many bytes that were."""
        rest = self.size() - extent.size
        if rest > 0:
            os.truncate(self._events, extent.size)
        entries = -(-extent.count // STRIDE)
        if self._index.exists() and self._index.stat().st_size > entries * _OFFSET.size:
            os.truncate(self._index, entries * _OFFSET.size)
        return max(0, rest)

    def _open(self) -> IO[bytes]:
        return os.fdopen(os.open(self._events, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=1 << 18)

    def _note(self, extent: Extent, lines: Sequence[bytes]) -> None:
        """Index entries of `lines`, which begin at the end of `extent`."""
        if -extent.count % STRIDE >= len(lines):
            return
        file = os.open(self._index, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            offset = extent.size
            for before, line in enumerate(lines, start=extent.count):
                if before % STRIDE == 0:
                    _write(file, _OFFSET.pack(offset), before // STRIDE * _OFFSET.size)
                offset += len(line)
        finally:
            os.close(file)

    def _seek(self, entry: int) -> int:
        """The offset of event ``entry * STRIDE + 1``; 0 if the index does not know it."""
        try:
            file = os.open(self._index, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return 0
        try:
            data = os.pread(file, _OFFSET.size, entry * _OFFSET.size)
        finally:
            os.close(file)
        return int(_OFFSET.unpack(data)[0]) if len(data) == _OFFSET.size else 0

    def _lines(self, file: IO[bytes], offset: int, after: int, last: int) -> list[Event] | None:
        """Events `after` + 1 to `last`, reading from an index entry; None if they are not there."""
        try:
            file.seek(offset)
        except (OSError, ValueError):  # beyond what an offset can be
            return None
        for _ in range(after % STRIDE):
            file.readline(MAX_LINE)
        events = []
        for seq in range(after + 1, last + 1):
            try:
                event, _ = event_of(self.run, file.readline(MAX_LINE))
            except ValidationError:
                return None
            if event.seq != seq:
                return None
            events.append(event)
        return events

    def _reindex(self, file: IO[bytes], extent: Extent) -> None:
        # Entry by entry in place: each has one right value, so a writer beside this does no harm.
        offset = file.seek(0) + len(file.readline(MAX_LINE))
        entries = bytearray()
        for before in range(extent.count):
            if before % STRIDE == 0:
                entries += _OFFSET.pack(offset)
            offset += len(file.readline(MAX_LINE))
        index = os.open(self._index, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            _write(index, bytes(entries), 0)
        finally:
            os.close(index)

    def _damaged(self, why: str) -> ProviderError:
        return ProviderError(
            f"The file {self._events} is damaged: {why}; restore it, or delete the run.", cause="store"
        )


def _write(file: int, data: bytes, offset: int) -> None:
    """All of `data` at `offset`; pwrite(2) may write less, e.g. on a full disk, where the next one says why."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
