"""Homes beside a user's, of one process each: made whole and marked, found again when their owner died.

- ``<runtime>/../vba-<token>/``: what `Settings.runtime` holds; beside the user's, since sockets want short paths;
- ``<shm>/apart-<token>/``: what `Settings.shm` holds; below the user's, so that nobody else sees it.

Each holds the ``owner.json`` of `voidbox_lab.machines.boxdirs`. Not for the boxes in them, except that those of a
dead owner are ended: they may be in the list of a libvirt that died with it. Blocking throughout, quick.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from voidbox_lab.errors import UserError
from voidbox_lab.machines import processes
from voidbox_lab.machines.boxdirs import OWNER_FILE, is_left_behind, own_directories, read_mark
from voidbox_lab.machines.owner import Owner
from voidbox_lab.settings import Settings

_RUNTIME, _SHM, _PART = "vba-", "apart-", ".new-"
_TOKEN = re.compile(r"[0-9a-f]{8}")


def claim_home(user: Settings) -> Settings:
    """`user`'s settings with runtime and memory directories of this process's own; `remove_home` them.

    They appear under their names only once the owner mark is in, so a sweep never sees one unmarked.

    Raises:
        UserError: a directory cannot be written.
    """
    token = secrets.token_hex(4)
    home = replace(user, runtime=user.runtime.parent / f"{_RUNTIME}{token}", shm=user.shm / f"{_SHM}{token}")
    # An owner is of a box by its form; no box has this name.
    text = json.dumps(Owner.current(home, f"vb-{token}00").attributes())
    try:
        for path in (home.runtime, home.shm):
            part = path.with_name(f"{_PART}{path.name}")
            part.mkdir(mode=0o700)
            (part / OWNER_FILE).write_text(text, encoding="utf-8")
            part.rename(path)
    except OSError as error:
        remove_home(home)
        raise UserError(
            f"The directory {error.filename} cannot be made ({error.strerror}); make room and make it writable.",
            cause="unwritable",
        ) from error
    return home


def remove_home(home: Settings) -> None:
    """Delete what `claim_home` made; missing ones are fine."""
    for path in (home.shm, home.runtime):
        for each in (path, path.with_name(f"{_PART}{path.name}")):
            shutil.rmtree(each, ignore_errors=True)


def sweep_homes(user: Settings) -> list[Path]:
    """Remove the homes beside `user`'s whose owner is gone, their processes first; what was removed."""
    removed = []
    for path in [*_left_behind(user.runtime.parent, _RUNTIME), *_left_behind(user.shm, _SHM)]:
        processes.end_box(path)
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path)
    return removed


def _left_behind(parent: Path, prefix: str) -> Iterator[Path]:
    for path in own_directories(parent):
        name = path.name.removeprefix(_PART)
        if not name.startswith(prefix) or not _TOKEN.fullmatch(name.removeprefix(prefix)):
            continue
        with suppress(OSError):  # vanished meanwhile
            if is_left_behind(path, read_mark(path), local=True):
                yield path
