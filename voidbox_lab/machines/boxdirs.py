"""A box's three directories and their owner mark: made whole, found again, removed. Not for what lies in them.

- ``<runtime>/b/<box>/``: sockets, boot file, console log; a short path, dies with the login session;
- ``<cache>/boxes/<box>/``: the scratch disk, which may grow large;
- ``<shm>/b/<box>/``: the memory of a clone, until its QEMU has it open.

Each holds ``owner.json``. The cache may be shared by containers, or over NFS by machines, whose processes
cannot be seen from here; what belongs to those is left alone until it has been quiet for a day.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from voidbox_lab.errors import ProviderError
from voidbox_lab.machines.owner import BOX_NAME, Owner
from voidbox_lab.settings import Settings

OWNER_FILE = "owner.json"
QUIET_S = 24 * 3600.0
"""Seconds without a change after which a directory of an owner out of sight counts as left behind."""
UNFINISHED_S = 600.0
"""Seconds after which a directory without a readable owner counts as left behind."""
_PART = ".new-"


@dataclass(frozen=True)
class BoxDirs:
    """Where one box's files are; made by `claim`."""

    runtime: Path
    cache: Path
    memory: Path

    @classmethod
    def of(cls, settings: Settings, box: str) -> BoxDirs:
        """The directories of `box`, existing or not."""
        return cls(settings.runtime / "b" / box, settings.cache / "boxes" / box, settings.shm / "b" / box)

    def remove(self) -> None:
        """Delete all; missing ones are fine. Blocking."""
        for path in (self.memory, self.runtime, self.cache):
            shutil.rmtree(path, ignore_errors=True)


def claim(settings: Settings, owner: Owner) -> BoxDirs:
    """Make the directories for ``owner.box``, mode 0700. Blocking, quick.

    They appear under their names only once the owner mark is in, so a sweep never sees one unmarked.

    Raises:
        ProviderError: the disk is full, read-only, or the box exists already.
    """
    dirs = BoxDirs.of(settings, owner.box)
    text = json.dumps(owner.attributes())
    try:
        for path in (dirs.runtime, dirs.cache, dirs.memory):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = path.with_name(f"{_PART}{owner.box}")
            part.mkdir(mode=0o700)
            (part / OWNER_FILE).write_text(text, encoding="utf-8")
            part.rename(path)
    except OSError as error:
        dirs.remove()
        raise ProviderError(
            f"The box's directory {error.filename} could not be made: {error.strerror}; check its disk.",
            cause="disk",
        ) from error
    return dirs


def left_behind(settings: Settings) -> Iterator[tuple[BoxDirs, Path]]:
    """Every box directory of this user whose owner is gone, after where that box's directories are. Blocking.

    The two differ where the cache is shared: its mark names a home that is not `settings`'.
    """
    places = ((settings.runtime / "b", True), (settings.shm / "b", True), (settings.cache / "boxes", False))
    for parent, local in places:
        for path in own_directories(parent):
            box = path.name.removeprefix(_PART)
            if not BOX_NAME.fullmatch(box):
                continue
            with suppress(OSError):  # vanished meanwhile
                owner = read_mark(path)
                if owner is not None and owner.box != box:
                    owner = None  # another box's mark
                if is_left_behind(path, owner, local=local):
                    home = settings if owner is None else replace(settings, runtime=Path(owner.home))
                    yield BoxDirs.of(home, box), path


def own_directories(parent: Path) -> Iterator[Path]:
    """The directories in `parent` that are this user's and no links; none where `parent` is missing. Blocking."""
    with suppress(FileNotFoundError), os.scandir(parent) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # vanished meanwhile
                info = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False) and info.st_uid == os.getuid():
                    yield Path(entry.path)


def read_mark(path: Path) -> Owner | None:
    """Whose the directory `path` is; None while, or if, it has no readable mark. Blocking."""
    try:
        with (path / OWNER_FILE).open(encoding="utf-8") as file:
            return Owner.from_mapping(json.loads(file.read(4096)))
    except (OSError, ValueError):
        return None


def is_left_behind(path: Path, owner: Owner | None, *, local: bool) -> bool:
    """Whether nobody needs the directory `path` any more, whose mark names `owner`. Blocking.

    Args:
        local: it cannot be another machine's.

    Raises:
        OSError: it vanished meanwhile.
    """
    if owner is None:
        return _quiet_for(path) > UNFINISHED_S
    liveness = owner.liveness()
    if liveness == "other-boot" and local:
        return True  # a runtime directory is never shared between machines
    if liveness in {"other-boot", "other-namespace"}:
        return _quiet_for(path) > QUIET_S
    return liveness == "dead"


def _quiet_for(path: Path) -> float:
    """Seconds since anything in `path` was last written."""
    newest = path.lstat().st_mtime
    for child in path.iterdir():
        with suppress(OSError):
            newest = max(newest, child.lstat().st_mtime)
    return time.time() - newest
