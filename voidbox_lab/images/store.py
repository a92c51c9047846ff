"""Where built things lie: content-addressed files, manifests that name them, and the lock around both.

    <cache>/layers/sha256/<hex>.squashfs     read-only layers
    <cache>/kernels/sha256/<hex>.elf         kernels
    <cache>/initrds/sha256/<hex>.cpio        initramfs archives
    <cache>/scratch/sha256/<hex>.img         scratch templates (sparse)
    <cache>/images/<name>/<hex>/manifest.json
    <cache>/images/<name>/current            the <hex> in use
    <cache>/steps/<hex>.json                 what a build step made of these inputs

A file appears under its final name by rename only, so a name means whole content. What happens afterwards
(a full disk's truncation, a curious editor) is caught cheaply by size, and by `verify` for certain.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.images import tools
from voidbox_lab.spec.digest import canonical_json, digest_file, digest_json

BlobKind = Literal["layers", "kernels", "initrds", "modules", "scratch"]
SUFFIX: dict[BlobKind, str] = {
    "layers": ".squashfs",
    "kernels": ".elf",
    "initrds": ".cpio",
    "modules": ".tar",
    "scratch": ".img",
}
LOCK_TIMEOUT_S = 1800.0
_BLOCK = 4096


@dataclass(frozen=True)
class Blob:
    """One content-addressed file."""

    kind: BlobKind
    digest: str
    size: int

    @classmethod
    def from_dict(cls, data: Any) -> Blob:
        """The inverse of dataclasses.asdict.

        Raises:
            ProviderError: a field is missing or has the wrong type.
        """
        data = data if isinstance(data, dict) else {}
        kind, digest, size = data.get("kind"), data.get("digest"), data.get("size")
        if kind not in SUFFIX or not is_digest(digest) or not isinstance(size, int):
            raise ProviderError(
                "A record in the image cache is damaged; run `voidbox image build`.", cause="cache"
            )
        return cls(kind, str(digest), size)


def is_digest(value: object) -> bool:
    """Whether `value` has the form ``sha256:<64 hex>``; anything else never becomes a path."""
    return (
        isinstance(value, str)
        and len(value) == 71
        and value.startswith("sha256:")
        and set(value[7:]) <= set("0123456789abcdef")
    )


class Store:
    """The image cache below one directory."""

    def __init__(self, cache: Path) -> None:
        self.root = cache

    @contextlib.contextmanager
    def lock(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the cache's build lock; one builder at a time across all processes of this user.

        Raises:
            LimitExceeded: another builder held it for longer than `timeout_s` seconds.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.root / "build.lock")
        deadline = time.monotonic() + timeout_s
        while not lock.is_locked:
            tools.check_cancelled()
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=max(0.0, min(tools.POLL_S, deadline - time.monotonic())))
                break
            if time.monotonic() < deadline:
                continue
            raise LimitExceeded(
                f"Another process has been building an image in {self.root} for over {timeout_s:g} s; "
                "wait for it or end it, then try again.",
                limit="time",
                value=timeout_s,
                unit="s",
            )
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A directory for half-made things, on the same file system, gone afterwards."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix="building-", ignore_cleanup_errors=True) as name:
            yield Path(name)

    def path(self, blob: Blob) -> Path:
        """Where `blob` lies, or would lie."""
        return self.root / blob.kind / "sha256" / (blob.digest.removeprefix("sha256:") + SUFFIX[blob.kind])

    def add(self, kind: BlobKind, made: Path) -> Blob:
        """Move the finished file `made` (same file system) into the store, read-only."""
        blob = Blob(kind, _digest(kind, made), made.stat().st_size)
        target = self.path(blob)
        target.parent.mkdir(parents=True, exist_ok=True)
        made.chmod(0o444)
        sync(made)
        made.replace(target)
        return blob

    def whole(self, blob: Blob) -> bool:
        """Whether `blob` is there with its size; content is not read."""
        try:
            return self.path(blob).stat().st_size == blob.size
        except FileNotFoundError:
            return False

    def verify(self, blob: Blob) -> bool:
        """Whether `blob` is there with its content; reads all of it."""
        return self.whole(blob) and _digest(blob.kind, self.path(blob)) == blob.digest

    def step(self, inputs: Any, kind: BlobKind, make: Callable[[Path], None]) -> Blob:
        """What `make` writes from `inputs`, made only if it is not in the store yet.

        `inputs` is everything the result depends on, as JSON; `make` gets the path to write to.
        """
        if (there := self.made(inputs, kind)) is not None:
            return there
        with self.workspace() as directory:
            target = directory / "made"
            make(target)
            blob = self.add(kind, target)
        write(self._record(inputs, kind), canonical_json(asdict(blob)))
        return blob

    def made(self, inputs: Any, kind: BlobKind) -> Blob | None:
        """What `step` made of `inputs` before, if it is whole; needs no lock."""
        with contextlib.suppress(FileNotFoundError, ProviderError, ValueError):
            blob = Blob.from_dict(json.loads(self._record(inputs, kind).read_bytes()))
            if blob.kind == kind and self.whole(blob):
                return blob
        return None

    def _record(self, inputs: Any, kind: BlobKind) -> Path:
        return self.root / "steps" / (digest_json([kind, inputs]).removeprefix("sha256:") + ".json")


def digest_sparse(path: Path) -> str:
    """``sha256:<hex>`` over a sparse file's length and each 4 KiB block that is not all zero, with its offset.

    The same for the same content, however it lies on the disk, without reading gigabytes of holes. All
    numbers are 8 bytes, little-endian.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        offset = 0
        while offset < size:
            try:
                start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            offset = max(offset, start - start % _BLOCK)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            file.seek(offset)
            while offset < end and (block := file.read(_BLOCK)):
                if block.strip(b"\0"):
                    digest.update(offset.to_bytes(8, "little") + block)
                offset += _BLOCK
    return "sha256:" + digest.hexdigest()


def _digest(kind: BlobKind, path: Path) -> str:
    return digest_sparse(path) if kind == "scratch" else digest_file(path)


def write(path: Path, data: bytes) -> None:
    """Put `data` under the name `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def sync(path: Path) -> None:
    """Bring a file's content to the disk before its name says that it is whole."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
