"""Files by their content: ``sha256/ab/abcd…``, written atomically, verified when read.

Not for anything secret, and not for a run's own records. One process (the daemon) writes; a crash
leaves at most a file under ``tmp/``, which the next start removes.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from anyio import CancelScope, to_thread

from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.spec import InputFile, digest_file

MAX_ARTIFACT_BYTES = 2 << 30
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Artifact:
    """A file that is kept."""

    digest: str
    size: int
    """Bytes."""
    modified: float
    """When it was uploaded or asked for last; UNIX time, seconds."""


class Artifacts:
    """A directory of content-addressed files. Create it with `open`."""

    def __init__(self, root: Path, *, max_bytes: int = MAX_ARTIFACT_BYTES) -> None:
        self.root = root
        self.max_bytes = max_bytes
        """Largest single artifact."""

    @classmethod
    async def open(cls, root: Path, *, max_bytes: int = MAX_ARTIFACT_BYTES) -> Artifacts:
        """The artifacts under `root`, created if missing; left-overs of a crash are removed."""
        self = cls(root, max_bytes=max_bytes)
        await to_thread.run_sync(self._prepare)
        return self

    async def put(self, data: bytes | AsyncIterable[bytes]) -> InputFile:
        """Keep `data`; the same bytes are kept once.

        Raises:
            LimitExceeded: more than `max_bytes`; nothing is kept.
            ProviderError: cause ``store``: the disk is full or not writable; nothing is kept.
        """
        try:
            return await self._put(data)
        except OSError as e:
            raise ProviderError(f"Nothing can be written to {self.root}: {e.strerror}.", cause="store") from e

    async def _put(self, data: bytes | AsyncIterable[bytes]) -> InputFile:
        sha, size = hashlib.sha256(), 0
        # Blocking, but a single open(2); the name is removed in the finally below, cancelled or not.
        temporary: IO[bytes] = tempfile.NamedTemporaryFile(dir=self.root / "tmp", delete=False)  # noqa: SIM115
        name = Path(temporary.name)
        try:
            async for chunk in _chunks(data):
                size += len(chunk)
                if size > self.max_bytes:
                    raise LimitExceeded(
                        f"The file is larger than {self.max_bytes} bytes; pass a smaller one.",
                        limit="artifact",
                        value=self.max_bytes,
                        unit="bytes",
                    )
                sha.update(chunk)
                await to_thread.run_sync(temporary.write, chunk)
            digest = f"sha256:{sha.hexdigest()}"
            with CancelScope(shield=True):
                await to_thread.run_sync(self._keep, temporary, name, self._place(digest))
            return InputFile(digest=digest, size=size)
        finally:
            with contextlib.suppress(OSError):
                temporary.close()
            name.unlink(missing_ok=True)  # noqa: ASYNC240 - one unlink(2), which must happen when cancelled too

    async def verified(self, digest: str) -> Path:
        """The path of an artifact whose bytes have just been checked against `digest`.

        Raises:
            UserError: no such artifact, or not a digest.
            ProviderError: cause ``artifact-corrupt``: the bytes are not what they were.
        """
        path = self._place(digest)
        try:
            found = await to_thread.run_sync(digest_file, path)
        except FileNotFoundError:
            raise UserError(f"There is no artifact {digest}; upload it first.", cause="unknown-artifact") from None
        except OSError as e:
            raise ProviderError(f"The artifact {digest} cannot be read: {e.strerror}.", cause="store") from e
        if found != digest:
            raise ProviderError(
                f"The artifact {digest} is damaged on disk (it is {found}); remove {path} and upload it again.",
                cause="artifact-corrupt",
            )
        return path

    async def read(self, digest: str, *, max_bytes: int = 64 << 20) -> bytes:
        """The verified bytes of a small artifact; `LimitExceeded` above `max_bytes`."""
        path = await self.verified(digest)
        size = path.stat().st_size
        if size > max_bytes:
            raise LimitExceeded(
                f"The artifact {digest} has {size} bytes, more than the {max_bytes} that may be read at once.",
                limit="artifact",
                value=max_bytes,
                unit="bytes",
            )
        return await to_thread.run_sync(path.read_bytes)

    async def has(self, digest: str) -> bool:
        """Whether a file of that name is there; its content is not looked at.

        It counts as modified now: who asks is about to refer to it, and retention spares what is young.
        """
        return await to_thread.run_sync(_touch, self._place(digest))

    async def list(self) -> builtins.list[Artifact]:
        """All that are there, by digest.

        Raises:
            ProviderError: cause ``store``: they cannot be listed.
        """
        try:
            return await to_thread.run_sync(self._list)
        except OSError as e:
            raise ProviderError(
                f"The artifacts in {self.root} cannot be listed: {e.strerror}.", cause="store"
            ) from e

    async def remove(self, digest: str, *, before: float | None = None) -> bool:
        """Remove an artifact; whether it was there. With `before` (UNIX time) only if not modified since.

        Raises:
            UserError: not a digest.
            ProviderError: cause ``store``: it cannot be removed.
        """
        try:
            return await to_thread.run_sync(_remove, self._place(digest), before)
        except OSError as e:
            raise ProviderError(f"The artifact {digest} cannot be removed: {e.strerror}.", cause="store") from e

    def _list(self) -> builtins.list[Artifact]:
        found = []
        for path in sorted((self.root / "sha256").glob("??/*")):
            digest = f"sha256:{path.name}"
            if _DIGEST.fullmatch(digest):
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    found.append(Artifact(digest, facts.st_size, facts.st_mtime))
        return found

    def _prepare(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.root / "sha256").mkdir(exist_ok=True, mode=0o700)
        temporary = self.root / "tmp"
        temporary.mkdir(exist_ok=True, mode=0o700)
        for left in temporary.iterdir():
            left.unlink(missing_ok=True)

    def _place(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if not match:
            raise UserError(f"{digest[:80]!r} is not an artifact digest; it looks like sha256:<64 hex digits>.")
        return self.root / "sha256" / match[1][:2] / match[1]

    @staticmethod
    def _keep(file: IO[bytes], name: Path, place: Path) -> None:
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o400)
        place.parent.mkdir(exist_ok=True, mode=0o700)
        # Also over an existing file: the same bytes, and a damaged one is healed by uploading it again.
        name.replace(place)


def _touch(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:  # on a read-only disk nothing is removed either
        return path.is_file()
    return path.is_file()


def _remove(path: Path, before: float | None) -> bool:
    try:
        if before is not None and path.stat().st_mtime >= before:
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    return True


async def _chunks(data: bytes | AsyncIterable[bytes]) -> AsyncIterable[bytes]:
    if isinstance(data, bytes):
        for start in range(0, len(data), 1 << 20):
            yield data[start : start + (1 << 20)]
        return
    async for chunk in data:
        yield chunk
