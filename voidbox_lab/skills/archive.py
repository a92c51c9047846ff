"""A skill's files from an archive: downloaded within bounds, and read without ever being unpacked."""

from __future__ import annotations

import gzip
import hashlib
import socket
import stat
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from voidbox_lab import tarstream
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.skills.deadline import Deadline
from voidbox_lab.skills.tree import MAX_ENTRIES, Listed, chosen
from voidbox_lab.spec.remote import RemoteRef, is_loopback
from voidbox_lab.spec.skill import SKILL_FILE

MAX_DOWNLOAD = 128 << 20
MAX_UNPACKED = 512 << 20
"""Bytes that a compressed archive may unfold to."""
MAX_DIRECTORY = 8 << 20
"""Bytes of a zip archive's directory: 46 and its name for each entry, which becomes some 600 when it is read."""
MAX_REDIRECTS = 5
_READ_S = 30.0
_BROKEN = (*tarstream.BROKEN, zipfile.BadZipFile, NotImplementedError)


@contextmanager
def downloaded(ref: RemoteRef) -> Iterator[tuple[IO[bytes], str]]:
    """The archive as a file that is gone afterwards, and its digest, ``sha256:…``.

    Raises:
        UserError: it is not there, or its digest is not what `ref` says.
        ProviderError: it cannot be reached.
        LimitExceeded: it is too large, or takes too long.
    """
    digest, size = hashlib.sha256(), 0
    with tempfile.TemporaryFile(prefix="voidbox-archive-") as file:
        for chunk in _chunks(ref):
            size += len(chunk)
            if size > MAX_DOWNLOAD:
                raise LimitExceeded(f"{ref.source} has more than {MAX_DOWNLOAD >> 20} MiB.", limit="disk")
            digest.update(chunk)
            file.write(chunk)
        revision = f"sha256:{digest.hexdigest()}"
        if ref.revision not in {None, revision}:
            raise UserError(f"{ref.source} is {revision} now, not {ref.revision}; check which one is meant.")
        file.seek(0)
        yield file, revision


def _chunks(ref: RemoteRef) -> Iterator[bytes]:
    import httpx  # a tenth of a second that a notebook without remote skills should not wait

    url, deadline = ref.source, Deadline(ref.source)
    try:
        with _cutting(deadline) as trace, httpx.Client(headers={"accept-encoding": "identity"}) as client:
            for _ in range(MAX_REDIRECTS + 1):
                deadline.check()
                seconds = min(_READ_S, deadline.left_s)
                with client.stream("GET", url, timeout=seconds, extensions={"trace": trace}) as response:
                    if response.has_redirect_location:
                        url = _next(ref, url, response.headers["location"])
                        continue
                    if response.status_code != 200:
                        raise _answered(ref, response.status_code)
                    for chunk in response.iter_raw():
                        yield chunk
                        deadline.check()
                    deadline.check()  # else a body that was cut off looks like one that has ended
                    return
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        deadline.check()
        raise ProviderError(f"{ref.source} cannot be fetched: {type(e).__name__}, {str(e)[:200]}.") from e
    raise ProviderError(f"{ref.source} redirects more than {MAX_REDIRECTS} times.")


def _answered(ref: RemoteRef, status: int) -> UserError | ProviderError:
    message = f"{ref.source} answers with HTTP {status}; check the address."
    return UserError(message) if status in {404, 410} else ProviderError(message)


@contextmanager
def _cutting(deadline: Deadline) -> Iterator[Any]:
    """Cuts off, at the deadline, each connection of the requests that get the yielded extension ``trace``.

    A timeout of httpx's bounds one read; a server that sends a byte now and then would never meet it.
    """
    sockets: list[socket.socket] = []

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            sockets.append(info["return_value"].get_extra_info("socket"))

    def cut() -> None:
        for each in sockets:
            # Not SSLSocket's own, which is for the thread that reads.
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)

    timer = threading.Timer(deadline.left_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()


def _next(ref: RemoteRef, url: str, location: str) -> str:
    following = urljoin(url, location)
    parts = urlsplit(following)
    # What is on this machine may go on to this machine; nothing else may.
    local = is_loopback(urlsplit(ref.source).hostname) and is_loopback(parts.hostname)
    if not (local and parts.scheme in {"http", "https"}) and (
        parts.scheme != "https" or is_loopback(parts.hostname)
    ):
        raise ProviderError(f"{ref.source} redirects to a place that is not https; use another address.")
    return following


def files_in(file: IO[bytes], ref: RemoteRef) -> dict[str, tuple[bytes, bool]]:
    """The files of the skill at `ref` in the archive `file`, as `git.files_at`.

    Raises:
        UserError: it is no archive of its kind, or there is no skill in it.
        LimitExceeded: it is too large.
    """
    try:
        with _Zip(file) if ref.source.endswith(".zip") else _Tar(file) as archive:
            listing = archive.listing()
            found = chosen(_without_top(listing, ref.path), ref.path, ref.source)
            data = archive.read({entry.key for entry in found.values()})
    except _BROKEN as e:
        raise UserError(f"{ref.source} is not a whole archive that is read here: {str(e)[:200]}.") from e
    return {name: (data[entry.key], entry.executable) for name, entry in found.items()}


def _without_top(listing: list[Listed], path: str) -> list[Listed]:
    """As people pack them: a single directory with everything in it need not be named in `path`."""
    wanted = {path, f"{path}/{SKILL_FILE}".lstrip("/")}
    below = [Listed(e.path.partition("/")[2], e.size, e.executable, e.key) for e in listing]
    alone = len({entry.path.split("/", 1)[0] for entry in listing}) == 1
    there = any(entry.path in wanted for entry in listing)
    return below if alone and not there and any(entry.path in wanted for entry in below) else listing


class _Bounded:
    """A stream that ends in `LimitExceeded`."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self._left = stream, MAX_UNPACKED

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise LimitExceeded(f"The archive unfolds to more than {MAX_UNPACKED >> 20} MiB.", limit="disk")
        return data


class _Tar:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def _members(self) -> Iterator[tuple[tarfile.TarFile, int, tarfile.TarInfo]]:
        self._file.seek(0)
        with gzip.GzipFile(fileobj=self._file) as plain:
            for number, (tar, member) in enumerate(tarstream.members(_Bounded(plain))):
                _check_count(number)
                yield tar, number, member

    def listing(self) -> list[Listed]:
        """Regular files; links and devices are left out. A path twice: the last one, as tar would have it."""
        found = {
            path: Listed(path, member.size, bool(member.mode & 0o100), str(number))
            for _, number, member in self._members()
            if member.isreg() and (path := _plain(member.name))
        }
        return list(found.values())

    def read(self, keys: set[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for tar, number, member in self._members():
            if str(number) in keys and (content := tar.extractfile(member)) is not None:
                found[str(number)] = content.read()
        return found


class _Directory:
    """A zip archive's file, for zipfile to read its directory from, if that is not too large."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.known = file, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY and not self.known:
            raise LimitExceeded(f"The archive's directory has more than {MAX_DIRECTORY >> 20} MiB.", limit="files")
        return self._file.read(size)


class _Zip:
    def __init__(self, file: IO[bytes]) -> None:
        # All of it is taken in at once, whatever number of entries is said to be there.
        directory: Any = _Directory(file)
        self._zip = zipfile.ZipFile(directory)
        directory.known = True
        self._infos = self._zip.infolist()
        _check_count(len(self._infos))

    def __enter__(self) -> _Zip:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._zip.close()

    def listing(self) -> list[Listed]:
        found = {}
        for number, info in enumerate(self._infos):
            mode = info.external_attr >> 16
            if (stat.S_IFMT(mode) in {0, stat.S_IFREG}) and not info.is_dir() and (path := _plain(info.filename)):
                found[path] = Listed(path, info.file_size, bool(mode & 0o100), str(number))
        return list(found.values())

    def read(self, keys: set[str]) -> dict[str, bytes]:
        found = {}
        for key in keys:
            info = self._infos[int(key)]
            if info.flag_bits & 1:
                raise UserError(f"The archive's {info.filename[:200]!r} is encrypted; use one that is not.")
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise UserError(f"The archive's {info.filename[:200]!r} is not stored or deflated; pack it anew.")
            with self._zip.open(info) as content:
                found[key] = content.read(info.file_size)
        return found


def _check_count(count: int) -> None:
    if count > MAX_ENTRIES:
        raise LimitExceeded(f"The archive has more than {MAX_ENTRIES} entries.", limit="files")


def _plain(name: str) -> str:
    """`name` without a leading ``./``; empty if it leads out of the archive."""
    name = name.removeprefix("./")
    return "" if name.startswith("/") or ".." in name.split("/") or "\\" in name else name
