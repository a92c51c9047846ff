"""One run of the directory store: its spec, its record, its log, put together. Not for many runs (`directory`).

Blocking. OSError where the disk fails, `Unreadable` where a file does not hold what it should.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from voidbox_lab.errors import ProviderError
from voidbox_lab.spec import RunRecord, RunSpec
from voidbox_lab.store import codec, fold
from voidbox_lab.store.eventlog import EventLog, Extent

log = logging.getLogger(__name__)


class Unreadable(Exception):
    """A file of a run is not what this store writes; the message says which."""


@dataclass(frozen=True)
class Head:
    """What is known of a run without reading it."""

    created_at: float
    order: int
    """Place in the order of creation."""
    state: str
    finished_at: float | None
    extent: Extent


class _Header(BaseModel):
    created_at: float
    order: int


class _State(BaseModel):
    state: str
    finished_at: float | None


class _Saved(BaseModel):
    """``record.json``, of its record only what a `Head` has."""

    seq: int
    bytes: int
    record: _State


class RunDir:
    """The directory `place` of the run `run`."""

    def __init__(self, place: Path, run: str) -> None:
        self.place, self.run = place, run
        self.log = EventLog(place, run)

    def create(self, record: RunRecord, spec: str, order: int) -> Head:
        """Make the directory with everything in it, or nothing. FileExistsError if there is one."""
        if self.place.exists():
            raise FileExistsError(str(self.place))
        draft = RunDir(self.place.with_name(f".new-{secrets.token_hex(8)}"), self.run)
        draft.place.mkdir(mode=0o700)
        try:
            write_file(draft.place / "spec.json", spec)
            extent = draft.log.create({"run": self.run, "created_at": record.created_at, "order": order})
            draft.save(record, extent)
            sync_directory(draft.place)
            draft.place.rename(self.place)
        except BaseException:
            shutil.rmtree(draft.place, ignore_errors=True)
            raise
        sync_directory(self.place.parent)
        return Head(record.created_at, order, record.state, record.finished_at, extent)

    def save(self, record: RunRecord, extent: Extent) -> None:
        """Keep `record`, which is the fold of the events in `extent`; both are on the disk then."""
        self.log.sync()
        text = f'{{"seq":{extent.count},"bytes":{extent.size},"record":{codec.record_text(record)}}}\n'
        write_file(self.place / "record.json", text)

    def load(self) -> RunRecord:
        """The record as it was saved last."""
        try:
            _, _, record = self._read("record.json").rstrip().partition('"record":')
            return codec.record_of(self._read("spec.json"), record[:-1])
        except (ValidationError, UnicodeDecodeError) as e:
            raise Unreadable(f"{self.place} holds no run as this release writes them") from e

    def recover(self) -> Head:
        """What the run is after whatever happened: a torn batch is cut, and the record is up to date.

        Costs one small read if the store was closed in order, and a fold of what came after the last `save` else.
        """
        try:
            values, start = self.log.header()
            header = _Header.model_validate(values)
        except (ProviderError, ValidationError) as e:
            raise Unreadable(f"{self.place}/events.jsonl has no header") from e
        size = self.log.size()
        saved = self._saved()
        if saved and saved.bytes == size:
            state = saved.record
            return Head(
                header.created_at, header.order, state.state, state.finished_at, Extent(saved.seq, saved.bytes)
            )
        try:
            if saved is None or saved.bytes > size:
                raise Unreadable("no record, or one of events that a power failure took")
            record, extent = self.load(), Extent(saved.seq, saved.bytes)
        except Unreadable:  # then from the beginning: the events are the truth
            record, extent = fold.new_record(self.run, self._spec(), at=header.created_at), start
        for events, reached in self.log.batches(extent):
            extent = reached
            for event in events:
                record = fold.apply(record, event)
        if cut := self.log.cut(extent):
            log.warning("%d bytes of a torn write were cut from the events of %s", cut, self.run)
        self.save(record, extent)
        return Head(header.created_at, header.order, record.state, record.finished_at, extent)

    def _spec(self) -> RunSpec:
        try:
            return RunSpec.model_validate_json(self._read("spec.json"))
        except (ValidationError, UnicodeDecodeError) as e:
            raise Unreadable(f"{self.place}/spec.json is no spec as this release writes them") from e

    def _saved(self) -> _Saved | None:
        with suppress(OSError, ValidationError, UnicodeDecodeError):
            return _Saved.model_validate_json(self._read("record.json"))
        return None

    def _read(self, name: str) -> str:
        file = os.open(self.place / name, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(file, encoding="utf-8") as reader:
            return reader.read()


def write_file(path: Path, text: str) -> None:
    """Put `text` into `path` (0600), all or nothing also in a power failure."""
    draft = path.with_name(path.name + ".new")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as writer:
        writer.write(text)
        writer.flush()
        os.fsync(file)
    draft.replace(path)


def sync_directory(path: Path) -> None:
    """Have names in `path` on the disk (fsync(2))."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def lock(path: Path) -> int:
    """The lock file `path`, held by this process until the descriptor is closed (flock(2)).

    Raises:
        ProviderError: cause ``store``: another process holds it.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise ProviderError(
            f"The store {path.parent} is open in another process (PID {owner}); end that one first.", cause="store"
        ) from None
    except BaseException:
        os.close(file)
        raise
    return file
