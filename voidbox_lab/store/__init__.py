"""Runs, events and artifacts, kept: one contract (`Store`), SQLite first."""

from voidbox_lab.store.artifacts import Artifacts
from voidbox_lab.store.contract import MAX_EVENT_BYTES, MAX_EVENTS_PER_RUN, Entry, Store
from voidbox_lab.store.fold import apply, is_unpriced, new_record, rebuild
from voidbox_lab.store.sqlite import SqliteStore

__all__ = [
    "MAX_EVENTS_PER_RUN",
    "MAX_EVENT_BYTES",
    "Artifacts",
    "Entry",
    "SqliteStore",
    "Store",
    "apply",
    "is_unpriced",
    "new_record",
    "rebuild",
]
