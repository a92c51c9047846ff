"""Runs, events and artifacts, kept: one contract (`Store`), in SQLite, in a directory, or on a Valkey server."""

from voidbox_lab.store.artifacts import Artifacts
from voidbox_lab.store.contract import MAX_EVENT_BYTES, MAX_EVENTS_PER_RUN, Entry, Store, is_vital
from voidbox_lab.store.directory import DirectoryStore
from voidbox_lab.store.fold import apply, new_record, rebuild
from voidbox_lab.store.opening import open_store
from voidbox_lab.store.retention import Pruned, prune
from voidbox_lab.store.sqlite import SqliteStore

__all__ = [
    "MAX_EVENTS_PER_RUN",
    "MAX_EVENT_BYTES",
    "Artifacts",
    "DirectoryStore",
    "Entry",
    "Pruned",
    "SqliteStore",
    "Store",
    "apply",
    "is_vital",
    "new_record",
    "open_store",
    "prune",
    "rebuild",
]
