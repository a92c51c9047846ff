"""Reads a layer's tar stream, however it is compressed, without believing any of it.

All that could grow is bounded: headers (`tarstream`), names, members, bytes. Nothing is written anywhere: the
stream goes through this process, and what it means in a file system is `tree`'s business. Format: image-layer.md
of the OCI image specification.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from voidbox_lab import tarstream
from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.images import tools

MAX_MEMBERS = 500_000
"""Of all layers together; the largest images in use have about 200 000."""
MAX_UNPACKED = 32 << 30
"""Bytes of all layers together."""
MAX_NAMES = 128 << 20
"""Bytes of all paths and links of all layers together, which are in memory as a whole."""
MAX_PATH = 4095
MAX_NAME = 255
MAX_DEPTH = 200


@dataclass(frozen=True)
class Source:
    """One layer as it came."""

    path: Path
    """Verified against its digest."""
    diff_id: str
    """``sha256:<hex>`` of the tar stream in it (config.md)."""


@dataclass
class Allowance:
    """What an image's layers may still amount to."""

    members: int = MAX_MEMBERS
    unpacked: int = MAX_UNPACKED
    names: int = MAX_NAMES

    def take_member(self) -> None:
        """One more member, or directory that is only the way to one. Raises LimitExceeded."""
        self.members -= 1
        if self.members < 0:
            raise LimitExceeded(
                f"The OCI image has more than {MAX_MEMBERS} files; use a smaller one.",
                limit="disk", value=MAX_MEMBERS, unit="files", cause="image-size",
            )  # fmt: skip

    def take_name(self, text: str) -> None:
        """One more path or link. Raises LimitExceeded."""
        self.names -= len(raw(text))
        if self.names < 0:
            raise LimitExceeded(
                f"The OCI image has more than {MAX_NAMES >> 20} MiB of names; use another one.",
                limit="disk", value=MAX_NAMES, unit="bytes", cause="image-size",
            )  # fmt: skip

    def take_bytes(self, number: int) -> None:
        """So many more bytes. Raises LimitExceeded."""
        self.unpacked -= number
        if self.unpacked < 0:
            raise too_large()


class _Hashing:
    """A stream that is hashed and counted as it is read."""

    def __init__(self, inner: IO[bytes], allowance: Allowance | None) -> None:
        self._inner, self._allowance = inner, allowance
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        tools.check_cancelled()
        data = self._inner.read(size)
        if self._allowance is not None:
            self._allowance.take_bytes(len(data))
            self.digest.update(data)
        return data


def members(
    source: Source, allowance: Allowance | None = None
) -> Iterator[tuple[int, tarfile.TarFile, tarfile.TarInfo]]:
    """Number, archive and header of each member of `source`, in order; content is read from the archive meanwhile.

    With an `allowance` the stream is counted against it and compared with its diff id at its end; without, it is
    a second look at a stream that was.

    Raises:
        ProviderError: the stream is damaged, unsafe or not what its diff id says.
        LimitExceeded: it is too much.
        Unavailable: zstd is missing.
    """
    with _opened(source.path) as stream:
        hashing = _Hashing(stream, allowance)
        try:
            for number, (tar, member) in enumerate(tarstream.members(hashing)):
                if allowance is not None:
                    _check(member, allowance)
                yield number, tar, member
            while hashing.read(tarstream.CHUNK):
                pass
        except tarstream.UnsafeMember as error:
            raise unsafe(error.name, error.why) from error
        except tarstream.BROKEN as error:
            raise _damaged(f"{type(error).__name__}: {error}"[:200]) from error
    if allowance is not None and f"sha256:{hashing.digest.hexdigest()}" != source.diff_id:
        raise ProviderError(
            "A layer of the OCI image does not hold what the image says; it was refused.", cause="digest-mismatch"
        )


def _check(member: tarfile.TarInfo, allowance: Allowance) -> None:
    allowance.take_member()
    # Before its content is awaited: a header costs nothing.
    if member.size > allowance.unpacked:
        raise too_large()
    for number in (member.uid, member.gid):
        if not 0 <= number < 1 << 32:
            raise unsafe(member.name, "its owner is out of range")


def parts(name: str) -> tuple[str, ...]:
    """The components of a member's name, none for the root.

    Raises:
        ProviderError: it is absolute, climbs, or is longer than Linux allows.
    """
    found = tuple(p for p in name.split("/") if p not in {"", "."})
    if name.startswith("/"):
        raise unsafe(name, "its path is absolute")
    if ".." in found:
        raise unsafe(name, "its path climbs out of the layer")
    if "\0" in name or len(raw(name)) > MAX_PATH or any(len(raw(p)) > MAX_NAME for p in found):
        raise unsafe(name, "its path is not one that Linux allows")
    if len(found) > MAX_DEPTH:
        raise unsafe(name, f"it lies more than {MAX_DEPTH} directories deep")
    return found


def target(member: tarfile.TarInfo) -> str:
    """Where the symbolic link `member` leads, as it is.

    Raises:
        ProviderError: nowhere that Linux allows.
    """
    if not member.linkname or "\0" in member.linkname or len(raw(member.linkname)) > MAX_PATH:
        raise unsafe(member.name, "the target of its link is not one that Linux allows")
    return member.linkname


def unsafe(name: str, why: str) -> ProviderError:
    """The error for the member `name` being refused."""
    return ProviderError(f"The OCI image was refused for its file {name[:200]!a}: {why}.", cause="archive-unsafe")


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Whatever a stream makes of those that go through its members, it is the stream's fault.

    Raises:
        ProviderError: instead of one of `tarstream.BROKEN`, but for what the system itself refuses.
    """
    try:
        yield
    except tarstream.BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ProviderError(
            f"The OCI image was refused, since a layer of it cannot be read ({type(error).__name__}: "
            f"{str(error)[:200]}).",
            cause="archive-unsafe",
        ) from error


def raw(text: str) -> bytes:
    """The bytes of a name."""
    return text.encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The tar stream in `path`. What it begins with decides, not the media type, as everywhere (containerd)."""
    with path.open("rb") as file:
        magic = os.pread(file.fileno(), 4, 0)
        if magic.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield unzipped  # type: ignore[misc]  # a reader, as IO[bytes] is
        elif magic == b"\x28\xb5\x2f\xfd":
            yield from _zstd(file)
        else:
            yield file


def _zstd(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Through the host's zstd: Python has none before 3.14. Its own bound on memory (128 MiB) holds."""
    command = [tools.find("zstd"), "-dcq", "--no-progress"]
    with subprocess.Popen(
        command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=tools.environment()
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
            if process.wait(timeout=30):
                raise _damaged("zstd cannot read it")
        finally:
            process.kill()


def _damaged(why: str) -> ProviderError:
    return ProviderError(f"A layer of the OCI image is damaged ({why}).", cause="archive-damaged")


def too_large() -> LimitExceeded:
    """The error for an image of more bytes than `MAX_UNPACKED`."""
    return LimitExceeded(
        f"The OCI image has more than {MAX_UNPACKED >> 30} GiB; use a smaller one.",
        limit="disk",
        value=MAX_UNPACKED,
        unit="bytes",
        cause="image-size",
    )
