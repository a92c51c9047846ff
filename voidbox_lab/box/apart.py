"""A place for boxes beside the user's daemon: libvirt's embedded driver belongs to one process per directory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from voidbox_lab.settings import Settings


@contextmanager
def apart(user: Settings) -> Iterator[Settings]:
    """`user`'s settings with runtime and memory directories of their own; images and templates stay the user's.

    Both are removed at the end. Blocking, quick. What a killed process leaves of them holds no guest: a domain's
    memory has no name once it runs, and the domain is swept by its owner.

    Raises:
        UserError: a directory cannot be written.
    """
    user.prepare()
    runtime = Path(tempfile.mkdtemp(prefix="vba-", dir=user.runtime.parent))
    shm = Path(tempfile.mkdtemp(prefix="apart-", dir=user.shm))
    try:
        yield replace(user, runtime=runtime, shm=shm, boot_log=None).prepare()
    finally:
        shutil.rmtree(shm, ignore_errors=True)
        shutil.rmtree(runtime, ignore_errors=True)
