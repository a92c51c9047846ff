"""Which store `VOIDBOX_STORE` asks for, opened. Not for artifacts, which are files in every case."""

from __future__ import annotations

from pathlib import Path

from voidbox_lab.errors import UserError
from voidbox_lab.store.contract import MAX_EVENTS_PER_RUN, Store
from voidbox_lab.store.directory import DirectoryStore
from voidbox_lab.store.sqlite import SqliteStore


async def open_store(choice: str, data: Path, *, max_events: int = MAX_EVENTS_PER_RUN) -> Store:
    """The store of `choice`: ``sqlite`` or ``directory`` below `data`, or the URL of a Valkey server.

    Raises:
        UserError: `choice` is none of these; it is not repeated, since it may hold a password.
        ProviderError: cause ``store``: it cannot be opened.
    """
    if choice == "sqlite":
        return await SqliteStore.open(data / "runs.sqlite", max_events=max_events)
    if choice == "directory":
        return await DirectoryStore.open(data / "runs", max_events=max_events)
    if "://" not in choice:
        raise UserError("VOIDBOX_STORE is none of sqlite, directory and valkey://…; set one of them or unset it.")
    # Here, since most processes never need the client.
    from voidbox_lab.store.valkey import ValkeyStore

    return await ValkeyStore.open(choice, max_events=max_events)
