"""Inputs on a worker: files by digest, given piece by piece, kept for the next stage that has the same ones.

Not for who sends them (`supply` in `executor`), nor for the daemon's artifacts.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from voidbox_lab.errors import ProviderError
from voidbox_lab.store.artifacts import MAX_ARTIFACT_BYTES

KEEP_BYTES = 4 << 30
"""What stays on disk for later stages; what a stage at work uses stays in any case."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass
class _Part:
    path: Path
    sha: Any = field(default_factory=hashlib.sha256)
    size: int = 0


class Inputs:
    """The files under `root`, which is this process's own and empty at first."""

    def __init__(self, root: Path, *, keep_bytes: int = KEEP_BYTES) -> None:
        self._root, self._keep = root, keep_bytes
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(mode=0o700, parents=True)
        self._sizes: dict[str, int] = {}
        """Whole files, the least recently used first."""
        self._held: Counter[str] = Counter()
        self._parts: dict[tuple[str, str], _Part] = {}
        self._came = anyio.Event()

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that are not here."""
        return [d for d in dict.fromkeys(digests) if d not in self._sizes]

    def path(self, digest: str) -> Path:
        """Where a file is or would be; `ProviderError` for what is no digest."""
        if not (found := _DIGEST.fullmatch(digest)):
            raise ProviderError(
                f"{digest[:80]!r} is not a digest; use the same release everywhere.", cause="protocol"
            )
        return self._root / found[1]

    @contextmanager
    def held(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep these, once they are here, for the time of the context."""
        mine = Counter(set(digests))
        self._held.update(mine)
        try:
            yield
        finally:
            self._held.subtract(mine)
            self._held += Counter()  # drops zeros
            for digest in mine & self._sizes.keys():
                self._sizes[digest] = self._sizes.pop(digest)  # used last
            self._make_room()

    async def come(self, digests: Iterable[str]) -> None:
        """Wait until all of these are here."""
        wanted = list(digests)
        while self.missing(wanted):
            await self._came.wait()

    async def give(self, daemon: str, digest: str, offset: int, data: bytes, *, last: bool) -> bool:
        """Take a piece; True once the file is whole and here. The pieces of one daemon come in order, from 0 on.

        Raises:
            ProviderError: the pieces do not fit, or the whole is not what its digest says (cause
                ``input-damaged``), or the disk takes no more.
        """
        place = self.path(digest)
        if digest in self._sizes:
            return True
        key = (daemon, digest)
        if offset == 0:
            self._parts[key] = _Part(
                place.with_name(f"{place.name}.{hashlib.sha256(daemon.encode()).hexdigest()[:16]}")
            )
        part = self._parts.get(key)
        if part is None or part.size != offset or offset + len(data) > MAX_ARTIFACT_BYTES:
            raise ProviderError(
                f"The input {digest} came out of order; run the stage again.", cause="input-damaged"
            )
        try:
            await to_thread.run_sync(_append, part, data)
            if not last:
                return False
            self._parts.pop(key, None)
            if f"sha256:{part.sha.hexdigest()}" != digest:
                part.path.unlink(missing_ok=True)
                raise ProviderError(
                    f"The input {digest} was damaged on its way; run it again.", cause="input-damaged"
                )
            part.path.replace(place)
        except OSError as e:
            raise ProviderError(f"Nothing can be written to {self._root}: {e.strerror}.", cause="disk") from e
        self._sizes[digest] = part.size
        self._came.set()
        self._came = anyio.Event()
        self._make_room()
        return True

    def forget(self, daemon: str) -> None:
        """Half a file of a daemon that is gone is nobody's."""
        for key in [k for k in self._parts if k[0] == daemon]:
            self._parts.pop(key).path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _make_room(self) -> None:
        over = sum(self._sizes.values()) - self._keep
        for digest in [d for d in self._sizes if d not in self._held]:
            if over <= 0:
                return
            over -= self._sizes.pop(digest)
            self.path(digest).unlink(missing_ok=True)


def _append(part: _Part, data: bytes) -> None:
    handle = os.open(part.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if part.size else os.O_TRUNC), 0o600)
    with os.fdopen(handle, "wb") as file:
        file.seek(part.size)
        file.write(data)
    part.sha.update(data)
    part.size += len(data)
