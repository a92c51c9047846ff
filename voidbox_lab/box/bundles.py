"""Trees into and out of a box, each in one request. Not for what they are for: folders, outputs, skills.

What comes out is hostile: every path is checked, every length bounded, and nothing is written here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anyio.to_thread import run_sync

from voidbox_lab.box.connection import Connection
from voidbox_lab.box.files import CHUNK, User, progress, send
from voidbox_lab.box.trouble import clean
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.spec.skill import check_relative
from voidbox_lab.wire import bundle
from voidbox_lab.wire import protocol as p

Kind = Literal["dir", "file", "link", "same"]
Why = Literal["link", "special", "unreadable", "path"]
"""Why something is left out: a symbolic link, or one that leads out or is no UTF-8; a device, socket or FIFO; no
right to read it; a name that is no path of ours, or too deep."""
KINDS: dict[int, Kind] = {bundle.DIRECTORY: "dir", bundle.FILE: "file", bundle.LINK: "link", bundle.SAME: "same"}
MAX_SHOWN = 8
"""Of what was left out, so many are named."""


@dataclass(frozen=True)
class Packed:
    """A piece of an entry that came out of a box."""

    kind: Kind
    path: str
    executable: bool
    data: bytes
    """A piece of a file; a link's whole target."""
    last: bool
    """Nothing more comes of this entry."""


@dataclass
class LeftOut:
    """What is not in a bundle; filled while it is made."""

    count: int = 0
    shown: tuple[tuple[str, str], ...] = ()
    """Some of it: a path, and a `Why`."""

    def add(self, path: str, why: Why) -> None:
        """One more."""
        self.count += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown = (*self.shown, (clean(path, 200), why))

    def whys(self) -> set[str]:
        """The reasons that are shown."""
        return {why for _, why in self.shown}

    def __str__(self) -> str:
        words = {
            "link": "a symbolic link",
            "special": "no regular file",
            "unreadable": "not readable",
            "path": "a name that cannot be kept",
        }
        said = [f"{path} ({words.get(why, 'unknown')})" for path, why in self.shown]
        more = self.count - len(said)
        return ", ".join(said) + (f" and {more} more" if more > 0 else "")


async def unpack(
    connection: Connection, path: str, chunks: Iterator[bytes], *, user: User, mount: Literal["", "ro", "rw"]
) -> None:
    """Send the bundle `chunks`, taken in a worker thread, to be unpacked at `path`. See `Box.unpack`."""
    call = connection.open(p.OP_UNPACK, path=path, user=user, mount=mount)
    try:
        while (data := await run_sync(next, chunks, None)) is not None:
            if not await send(call, data):
                break
        call.end(0)
        await progress(call, call.result)
    finally:
        call.abandon()


async def pack(
    connection: Connection,
    path: str,
    *,
    user: User,
    links: bool,
    changed: bool,
    max_files: int,
    max_bytes: int,
    left_out: LeftOut,
) -> AsyncGenerator[Packed, None]:
    """The tree at `path`. See `Box.pack`."""
    call = connection.open(
        p.OP_PACK, path=path, user=user, links=links, changed=changed, max_files=max_files, max_bytes=max_bytes
    )
    decoder, seen = bundle.Decoder(), _Seen(path, max_files, max_bytes, left_out)
    try:
        while data := await progress(call, lambda: call.receive(0, CHUNK)):
            try:
                pieces = decoder.feed(data)
            except bundle.BundleError as error:
                raise _malformed(str(error)) from None
            for entry, piece, last in pieces:
                if (found := seen.checked(entry, piece, last)) is not None:
                    yield found
        reply = await progress(call, call.result)
        if not decoder.whole:
            raise _malformed("it ends in the midst of an entry")
        _add(left_out, reply)
    finally:
        call.abandon()


class _Seen:
    """Checks what comes against what came before and against the bounds."""

    def __init__(self, path: str, max_files: int, max_bytes: int, left_out: LeftOut) -> None:
        self._path, self._max_files, self._max_bytes, self._left_out = path, max_files, max_bytes, left_out
        self._dirs, self._others = {""}, set[str]()
        self._entries = self._bytes = 0
        self._entry: bundle.Entry | None = None
        self._name: str | None = None

    def checked(self, entry: bundle.Entry, data: bytes, last: bool) -> Packed | None:
        if entry is not self._entry:
            self._entry, self._name = entry, self._begun(entry)
        if self._name is None:
            return None
        if entry.kind == bundle.LINK:
            if not bundle.stays_inside(entry.path, data):
                raise _malformed("a link leads out of it")
            try:
                data.decode()
            except UnicodeDecodeError:
                self._left_out.add(self._name, "link")
                return None
        return Packed(KINDS[entry.kind], self._name, bool(entry.mode & 0o111), data, last)

    def _begun(self, entry: bundle.Entry) -> str | None:
        """The path of a new entry; None for one that cannot be kept, which is let go by."""
        self._entries += 1  # those that are let go by as well: there must be an end
        self._bytes += entry.size
        if self._bytes > self._max_bytes or self._entries > self._max_files:
            raise too_large(self._path, self._max_files, self._max_bytes)
        try:
            name = check_relative(entry.path.decode())
        except ValueError:  # a UnicodeDecodeError as well
            self._left_out.add(entry.path.decode("utf-8", "backslashreplace"), "path")
            return None
        if name in self._dirs or name in self._others:
            raise _malformed("a path comes twice")
        if name.rpartition("/")[0] not in self._dirs:
            # Below one that was left out, or below a file: it has no place.
            self._left_out.add(name, "path")
            return None
        (self._dirs if entry.kind == bundle.DIRECTORY else self._others).add(name)
        return name


def too_large(path: str, max_files: int, max_bytes: int) -> LimitExceeded:
    """There is more at `path` in a box than may come out."""
    return LimitExceeded(
        f"There are more than {max_files} files and directories, or {max_bytes >> 20} MiB, in {path!r} of the "
        "box; have fewer kept there, or put them into one archive.",
        limit="files",
        value=max_files,
        unit="files",
        cause=p.TOO_LARGE,
    )


def encoded(files: Iterable[tuple[str, bytes | Path, bool]]) -> Iterator[bytes]:
    """A bundle of files: path, bytes or where they are, whether executable. Directories are made as needed.

    Raises:
        UserError: a file cannot be read, or changes meanwhile.
    """
    made = {""}
    for path, source, executable in files:
        for n in range(1, path.count("/") + 1):
            directory = "/".join(path.split("/")[:n])
            if directory not in made:
                made.add(directory)
                yield bundle.head(bundle.DIRECTORY, 0o755, directory.encode())
        mode = 0o755 if executable else 0o644
        if isinstance(source, bytes):
            yield bundle.head(bundle.FILE, mode, path.encode(), len(source)) + source
            continue
        try:
            with source.open("rb") as file:
                left = source.stat().st_size
                data = bundle.head(bundle.FILE, mode, path.encode(), left)
                while left:
                    piece = file.read(min(left, CHUNK))
                    if not piece:
                        raise UserError(f"The file {source} became shorter while it was read; try again.")
                    left -= len(piece)
                    yield data + piece
                    data = b""
                if data:
                    yield data
        except OSError as error:
            raise UserError(f"The file {source} cannot be read: {error.strerror}.", cause="not-found") from None


def together(chunks: Iterator[bytes], size: int = CHUNK) -> Iterator[bytes]:
    """`chunks` in pieces of about `size`: each costs a trip to a worker thread."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        if len(waiting) >= size:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


def _add(left_out: LeftOut, reply: dict[str, Any]) -> None:
    """What the guest says that it left out."""
    count, shown = reply.get("left_out"), reply.get("shown")
    if type(count) is not int or not 0 <= count <= 1 << 31 or not isinstance(shown, list):
        raise _malformed("its end is no such thing")
    for item in shown[: MAX_SHOWN - len(left_out.shown)]:
        match item:
            case [str(path), str(why)]:
                left_out.shown = (*left_out.shown, (clean(path, 200), clean(why, 20)))
            case _:
                raise _malformed("its end is no such thing")
    left_out.count += count


def _malformed(what: str) -> ProviderError:
    return ProviderError(f"The guest sent a malformed bundle: {what}.", cause="protocol")
