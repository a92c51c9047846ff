"""Resolves and fetches distribution packages with apt itself, unprivileged, without touching the system.

apt runs with an empty dpkg status (so that it plans a system from nothing) or with one that lists what the
layers below have (so that it plans what is missing), with state and caches of our
own, and reads the system's package lists where they exist. Only where these lists do not do (none there,
or so old that files have gone from the mirror) are lists of our own fetched, from the system's sources
and checked by the system's keys. Nothing here installs anything.

Every file is checked twice: by apt against the signed lists, and by us against the lock's SHA-256, also
each time it is taken from the cache.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from voidbox_lab.errors import ProviderError, Unavailable
from voidbox_lab.images import tools
from voidbox_lab.images.store import write
from voidbox_lab.spec.digest import digest_file

RESOLVE_TIMEOUT_S = 120.0
UPDATE_TIMEOUT_S = 600.0
DOWNLOAD_TIMEOUT_S = 1800.0
SYSTEM_LISTS = Path("/var/lib/apt/lists")


@dataclass(frozen=True, order=True)
class Package:
    """One package file, pinned."""

    name: str
    version: str
    architecture: str
    sha256: str
    """Hex, without prefix, as in the archive's lists."""
    size: int
    """Bytes of the .deb file."""

    def to_dict(self) -> dict[str, str | int]:
        """JSON-able form, the lock's."""
        return asdict(self)


class Apt:
    """apt with everything it may write under `root`.

    `installed` is a dpkg status file (deb-control(5) stanzas) of what is there already; it is never removed.
    """

    def __init__(
        self, root: Path, architecture: str, *, system_lists: Path = SYSTEM_LISTS, installed: bytes = b""
    ) -> None:
        self.root = root
        self.packages_dir = root / "packages"
        self._architecture = architecture
        self._installed = installed
        self._own_lists = root / "apt" / "lists"
        self._lists = system_lists if any(system_lists.glob("*_Packages*")) else self._own_lists

    def resolve(self, names: Sequence[str]) -> tuple[Package, ...]:
        """The closure of `names` over Depends and Pre-Depends (not Recommends), sorted by name.

        Raises:
            Unavailable: apt is not installed, or it knows a name neither from the system's lists nor from
                fresh ones.
        """
        try:
            return self._resolve(names)
        except ProviderError as first:
            if isinstance(first, Unavailable) or not self._refresh():
                raise self._unknown(names, first) from first
        try:
            return self._resolve(names)
        except ProviderError as second:
            raise self._unknown(names, second) from second

    def fetch(
        self, packages: Iterable[Package], advance: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[Package, Path]:
        """Paths of the .deb files, downloading only those that are not in the cache yet.

        `advance` gets (bytes downloaded, bytes to download) now and then.

        Raises:
            Unavailable: a file is neither cached nor to be had.
        """
        paths = {p: self.packages_dir / f"{p.sha256}.deb" for p in packages}
        missing = [p for p, path in paths.items() if not _intact(path, p)]
        if missing:
            try:
                self._download(missing, advance)
            except ProviderError as first:
                # Mirrors drop superseded files: with fresh lists the same version may be found elsewhere.
                if isinstance(first, Unavailable) or not self._refresh():
                    raise self._unfetched(missing, first) from first
                try:
                    self._download(missing, advance)
                except ProviderError as second:
                    raise self._unfetched(missing, second) from second
        return paths

    def _resolve(self, names: Sequence[str]) -> tuple[Package, ...]:
        printed = tools.run(
            [
                "apt-get",
                *self._options(),
                "-y",
                "-q",
                "--no-install-recommends",
                "--no-remove",
                "--print-uris",
                "install",
                *names,
            ],
            timeout_s=RESOLVE_TIMEOUT_S,
        )
        found = [parse_uri_line(line) for line in printed.decode().splitlines() if line.startswith("'")]
        return tuple(sorted(found))

    def _download(self, packages: Sequence[Package], advance: Callable[[int, int], None]) -> None:
        self.packages_dir.mkdir(parents=True, exist_ok=True)
        total = sum(p.size for p in packages)
        with tempfile.TemporaryDirectory(dir=self.packages_dir, prefix=".partial-") as partial:
            command = [tools.find("apt-get"), *self._options(), "-q", "download"]
            command += [f"{p.name}:{p.architecture}={p.version}" for p in packages]
            deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
            with (
                tempfile.TemporaryFile() as said,
                subprocess.Popen(
                    command,
                    cwd=partial,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    env=tools.environment(),
                ) as process,
            ):
                try:
                    while process.poll() is None:
                        if time.monotonic() > deadline:
                            raise tools.too_slow("apt-get", DOWNLOAD_TIMEOUT_S)
                        advance(sum(e.stat().st_size for e in _files(Path(partial))), total)
                        time.sleep(0.2)
                finally:
                    process.kill()
                said.seek(0)
                if process.returncode:
                    raise tools.failed("apt-get", process.returncode, said.read())
            by_digest = {digest_file(f).removeprefix("sha256:"): f for f in _files(Path(partial))}
            for package in packages:
                if package.sha256 not in by_digest:
                    raise ProviderError(
                        f"apt fetched {package.name} {package.version}, but not the file its own lists promise; "
                        "run `sudo apt-get update` and try again.",
                        cause="digest-mismatch",
                    )
                by_digest[package.sha256].replace(self.packages_dir / f"{package.sha256}.deb")
            advance(total, total)

    def _refresh(self) -> bool:
        """Fetch package lists of our own; False when that cannot be done or was done already."""
        if self._lists == self._own_lists and self._own_lists.is_dir() and self._fresh():
            return False
        self._lists = self._own_lists
        try:
            tools.run(["apt-get", *self._options(), "-q", "update"], timeout_s=UPDATE_TIMEOUT_S)
        except ProviderError:
            return False
        return True

    def _fresh(self) -> bool:
        return time.time() - self._own_lists.stat().st_mtime < 600

    def _options(self) -> list[str]:
        state = self.root / "apt"
        (state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        if self._lists == self._own_lists:
            (self._own_lists / "partial").mkdir(parents=True, exist_ok=True)
        status = state / "status"
        if self._installed:
            status = state / f"status-{hashlib.sha256(self._installed).hexdigest()[:32]}"
            if not status.is_file():
                write(status, self._installed)
        else:
            status.touch()
        settings = {
            "APT::Architecture": self._architecture,
            "Dir::State": state,
            "Dir::State::lists": self._lists,
            "Dir::State::status": status,
            "Dir::Cache": state / "cache",
            # apt's own sandbox user could not write into a private cache.
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": "1",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "30",
            "Acquire::https::Timeout": "30",
            "Acquire::Languages": "none",
            # Another's post-update hooks are not ours to run.
            "APT::Update::Post-Invoke::": "true",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    @staticmethod
    def _unknown(names: Sequence[str], error: ProviderError) -> Unavailable:
        if isinstance(error, Unavailable):
            return error
        return Unavailable(
            f"apt cannot plan an image of {', '.join(names[:3])}{'…' if len(names) > 3 else ''} "
            f"({error.message.rpartition(': ')[2]}); run `sudo apt-get update` with network access and try again.",
            cause="packages-unknown",
        )

    @staticmethod
    def _unfetched(packages: Sequence[Package], error: ProviderError) -> Unavailable:
        if isinstance(error, Unavailable):
            return error
        return Unavailable(
            f"{len(packages)} package files ({packages[0].name}{'…' if len(packages) > 1 else ''}) are not cached "
            f"and cannot be downloaded ({error.message.rpartition(': ')[2]}); connect to a network, "
            "run `sudo apt-get update` and try again.",
            cause="packages-unreachable",
        )


def parse_uri_line(line: str) -> Package:
    """One line of ``apt-get --print-uris``: ``'URI' NAME_VERSION_ARCH.deb SIZE SHA256:HEX``.

    Raises:
        ProviderError: the line has another form (no SHA-256, say).
    """
    try:
        _, file, size, digest = shlex.split(line)
        name, version, architecture = file.removesuffix(".deb").split("_")
        kind, _, value = digest.partition(":")
        if kind != "SHA256" or len(value) != 64:
            raise ValueError(digest)
        return Package(name, urllib.parse.unquote(version), architecture, value.lower(), int(size))
    except ValueError:
        raise ProviderError(f"apt printed a download line that is not understood: {line[:200]!r}.") from None


def _files(directory: Path) -> list[Path]:
    # apt renames files while this looks; a name that has just gone is not an error.
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                if entry.is_file(follow_symlinks=False):
                    entry.stat(follow_symlinks=False)
                    found.append(Path(entry.path))
            except FileNotFoundError:
                continue
    return found


def _intact(path: Path, package: Package) -> bool:
    try:
        if path.stat().st_size != package.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
    except FileNotFoundError:
        return False
