"""Tar streams of strangers, read within bounds that Python's tarfile does not have. Not for what members mean.

tarfile takes a header of headers into memory whatever its size, follows the map of a sparse file to its end, keeps
every header, and (before 3.11.10) lets the records of a pax header overlap, so that 64 KiB of them become a
gigabyte. Formats: pax(1) of POSIX.1-2017, GNU long names.
"""

from __future__ import annotations

import math
import tarfile
import zlib
from collections.abc import Iterator
from typing import Protocol

MAX_HEADER = 64 << 10
"""Bytes of one pax header or GNU long name."""
BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, RecursionError, ValueError, OverflowError)
"""What tarfile and the decompressors raise on streams that are not what they should be."""
CHUNK = 1 << 20
"""Bytes that are asked of a stream at once."""

_PAX = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_HEADERS = {*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_NUMBERS = {"size", "uid", "gid"}
_FIELDS = {"path", "linkpath", "mtime", *_NUMBERS}
"""Keywords of pax headers that are of use here; extended attributes are not."""


class Readable(Protocol):
    """What a stream must be."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at the end."""
        ...


class UnsafeMember(tarfile.TarError):
    """A member that is made to cost its reader, or to be taken for another."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"its file {name[:200]!a} is refused: {why}")
        self.name, self.why = name, why


def members(stream: Readable) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Archive and header of each member of the uncompressed `stream`, in order; content is read meanwhile.

    Sizes are not negative, times are finite; owners and names are whatever they are.

    Raises:
        UnsafeMember: one is sparse, or has a header larger than `MAX_HEADER`.
        Exception: one of `BROKEN`.
    """
    with tarfile.open(
        fileobj=stream,  # type: ignore[call-overload]  # a stream is only read
        mode="r|",
        bufsize=CHUNK,
        tarinfo=_Member,
        encoding="utf-8",
        errors="surrogateescape",
    ) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # a stream never goes back, and headers of half a million files are many
            yield tar, member


class _Member(tarfile.TarInfo):
    """A header that is looked at before tarfile reads what it announces."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        made = super().frombuf(buf, encoding, errors)
        if made.size < 0:
            raise UnsafeMember(made.name, "its size is negative")
        if made.type == tarfile.GNUTYPE_SPARSE:
            raise UnsafeMember(made.name, "it is sparse")
        if made.type in _HEADERS and made.size > MAX_HEADER:
            raise UnsafeMember(made.name, f"one of its headers has {made.size} bytes")
        return made

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """As tarfile's own, which calls this, but for what it takes from the header."""
        assert tar.fileobj is not None
        padded = tar.fileobj.read(self._block(self.size))  # type: ignore[attr-defined]
        said = _fields(self.name, padded[: self.size])
        if self.type == tarfile.XGLTYPE:
            tar.pax_headers = {**tar.pax_headers, **said}
            return self._following(tar)
        headers = {**tar.pax_headers, **said}
        member = self._following(tar)
        member._apply_pax_info(headers, tar.encoding, tar.errors)  # type: ignore[attr-defined]
        member.offset = self.offset
        if "size" in said:
            data = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
            tar.offset = member.offset_data + (self._block(member.size) if data else 0)  # type: ignore[attr-defined]
        return member

    def _following(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return self.fromtarfile(tar)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"nothing follows a header ({error})") from None


def _fields(name: str, header: bytes) -> dict[str, str]:
    """Those of `_FIELDS` in a pax header, the last of each; all of it must be records."""
    found: dict[str, str] = {}
    at = 0
    while at < len(header) and header[at]:  # some writers end in zeros
        digits, space, _ = header[at : at + 10].partition(b" ")
        end = at + int(digits) if digits.isdigit() and space else 0
        keyword, equals, value = header[at + len(digits) + 1 : end - 1].partition(b"=")
        if not at + len(digits) + 1 < end <= len(header) or header[end - 1] != ord("\n") or not equals:
            raise tarfile.ReadError("a pax header is damaged")
        at = end
        key = keyword.decode("utf-8", "surrogateescape")
        if key.startswith("GNU.sparse."):
            raise UnsafeMember(name, "it is sparse")
        if key in _FIELDS and value:
            found[key] = _checked(key, value)
    return found


def _checked(key: str, value: bytes) -> str:
    text = value.decode("utf-8", "surrogateescape")
    try:
        number = key in _NUMBERS and value.isdigit() and len(value) <= 20
        good = number or key in {"path", "linkpath"} or (key == "mtime" and math.isfinite(float(text)))
    except ValueError:
        good = False
    if not good:
        raise tarfile.ReadError(f"a pax header has {text[:40]!a} for {key}")
    return text
