"""Templates on disk: one directory each, named by the digest of what it depends on. Blocking throughout.

    <cache>/templates/<key>/template.json   what it is of, and the digests of the rest
    <cache>/templates/<key>/memory.pages    guest memory (see `pages`)
    <cache>/templates/<key>/scratch.pages   the scratch disk, as the guest knows it
    <cache>/templates/<key>/state           QEMU's device state
    <cache>/templates/<key>.lock            held while one is made

A directory appears under its name by rename, whole. What is asked of it later is checked: sizes whenever it is
found, digests whenever it is loaded. Anything else is thrown away and made again, never repaired.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.machines.spec import Accelerator
from voidbox_lab.machines.templates import pages
from voidbox_lab.spec.digest import canonical_json

FORMAT = 1
"""Part of every key: raise it when a template of an earlier version must not be used."""
META = "template.json"
MEMORY, SCRATCH, STATE = "memory.pages", "scratch.pages", "state"
PART = ".part-"
PART_LIFETIME_S = 3600.0
"""Seconds after which an unfinished directory is a dead process's."""
MAX_META = 64 << 10


@dataclass(frozen=True)
class Key:
    """All that a saved machine depends on: restored under anything else it would be another machine."""

    image: str
    """The image's digest: kernel, initramfs, layers, arguments, the guest agent's code."""
    memory_mb: int
    vcpus: int
    accelerator: Accelerator
    emulator: str
    """Path, size and time of the QEMU binary: packages change it under a running process."""
    qemu: str
    libvirt: str
    """libvirt's version: it writes QEMU's command line."""
    recipe: str
    """Digest of the domain template."""
    processor: str
    """Under KVM the host's processor and kernel, which the guest saw at its boot; else the emulated model."""

    @property
    def digest(self) -> str:
        """32 hexadecimal digits."""
        return hashlib.sha256(canonical_json({"format": FORMAT, **asdict(self)})).hexdigest()[:32]


@dataclass(frozen=True)
class File:
    """One file of a template: SHA-256 in hexadecimal, and bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Template:
    """A template on disk."""

    digest: str
    path: Path
    key: dict[str, Any]
    files: dict[str, File]
    made: float
    """Seconds since the epoch."""
    used: float
    """The same, of the last load."""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files.values())


class TemplateStore:
    """The templates below `root`; any number of processes may use one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, digest: str) -> Template | None:
        """The template of that key, if it is whole as far as names and sizes tell; else None."""
        path = self.root / digest
        try:
            with (path / META).open("rb") as file:
                data = json.loads(file.read(MAX_META))
            files = {name: File(str(f["sha256"]), int(f["size"])) for name, f in data["files"].items()}
            if data["format"] != FORMAT or set(files) != {MEMORY, SCRATCH, STATE}:
                return None
            if any((path / name).stat().st_size != file.size for name, file in files.items()):
                return None
            used = (path / META).stat().st_mtime
            return Template(digest, path, dict(data["key"]), files, float(data["made"]), used)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return None

    def all(self) -> list[Template]:
        """All whole templates, the last used first."""
        found = [self.find(path.name) for path in self._directories()]
        return sorted([t for t in found if t is not None], key=lambda t: t.used, reverse=True)

    def touch(self, template: Template) -> None:
        """It is in use now."""
        with contextlib.suppress(OSError):
            os.utime(template.path / META)

    def put(self, key: Key, memory: Path, scratch: Path, state: Path) -> Template:
        """Keep a saved machine; replaces whatever lay under its name.

        Raises:
            ProviderError: the disk is full or read-only (cause ``disk``); nothing is left of the attempt.
        """
        digest, part = key.digest, None
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=PART, dir=self.root))
            digests = {MEMORY: pages.pack(memory, part / MEMORY), SCRATCH: pages.pack(scratch, part / SCRATCH)}
            digests[STATE] = _copy(state, part / STATE)
            meta = {
                "format": FORMAT,
                "key": asdict(key),
                "made": time.time(),
                "files": {n: {"sha256": d, "size": (part / n).stat().st_size} for n, d in digests.items()},
            }
            with (part / META).open("x", encoding="utf-8") as file:
                json.dump(meta, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            self.discard(digest)
            part.rename(self.root / digest)
        except OSError as error:
            raise ProviderError(
                f"A template could not be kept below {self.root}: {error.strerror}; make room there.", cause="disk"
            ) from error
        finally:
            if part is not None:
                shutil.rmtree(part, ignore_errors=True)
        found = self.find(digest)
        if found is None:
            raise ProviderError(f"The template {digest} vanished while it was made; try again.", cause="disk")
        return found

    def discard(self, digest: str) -> None:
        """Remove a template, whole or not, as far as the disk lets us. Who has it loaded keeps it."""
        with contextlib.suppress(OSError):  # there is none, or it is not ours to remove
            part = Path(tempfile.mkdtemp(prefix=PART, dir=self.root))
            try:
                (self.root / digest).rename(part / digest)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def prune(self, cap_bytes: int, *, keep: str = "") -> list[Template]:
        """Remove the least recently used until at most `cap_bytes` are left, and whatever is not whole.

        `keep`: a digest to spare. Returns what was removed.
        """
        removed, total = [], 0
        for template in sorted(self.all(), key=lambda t: t.digest != keep):
            if template.digest == keep or total + template.size <= cap_bytes:
                total += template.size
            else:
                removed.append(template)
                self.discard(template.digest)
        for path in self._directories():
            if self.find(path.name) is None:
                self.discard(path.name)
        for path in self._parts():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > PART_LIFETIME_S:
                    shutil.rmtree(path, ignore_errors=True)
        return removed

    @contextlib.contextmanager
    def making(self, digest: str, timeout_s: float) -> Iterator[None]:
        """Hold the one right to make the template `digest`, among all processes.

        Raises:
            LimitExceeded: another process held it for `timeout_s`.
            ProviderError: the lock file cannot be made (cause ``disk``).
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with filelock.FileLock(self.root / f"{digest}.lock", timeout=timeout_s, thread_local=False):
                yield
        except filelock.Timeout:
            raise LimitExceeded(
                f"Another process has been making this template for {timeout_s:g} s; stop it, or wait.",
                limit="time",
                value=timeout_s,
                unit="s",
            ) from None
        except OSError as error:
            raise ProviderError(f"{self.root} cannot be written: {error.strerror}.", cause="disk") from error

    def _directories(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith(PART))
        return []

    def _parts(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [p for p in self.root.iterdir() if p.name.startswith(PART)]
        return []


def _copy(source: Path, target: Path) -> str:
    data = source.read_bytes()
    with target.open("xb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return hashlib.sha256(data).hexdigest()
