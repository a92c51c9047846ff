"""Skills from archives on a real server: by digest, within bounds, and never unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tests.skills.servers import dripping, files_over_http
from voidbox_lab import Skill
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.skills import archive, deadline

SKILL = b"---\nname: fx\n---\nUse rates.csv.\n"


def _member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o100755 if name.endswith(".sh") else 0o100644) << 16
            made.writestr(info, data)
    return out.getvalue()


GOOD = _tar(
    _member("market-1.0/skills/fx/SKILL.md", SKILL),
    _member("market-1.0/skills/fx/rates.csv", b"EUR,1.1\n"),
    _member("market-1.0/skills/fx/run.sh", b"#!/bin/sh\n", mode=0o755),
    _member("market-1.0/skills/fx/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    _member("market-1.0/skills/fx/hard", type=tarfile.LNKTYPE, linkname="../../../etc/passwd"),
    _member("market-1.0/skills/fx/null", type=tarfile.CHRTYPE),
    _member("market-1.0/skills/fx/../../../../evil", b"x"),
    _member("/absolute", b"x"),
    _member("market-1.0/skills/fx/.git/config", b"x"),
)


def test_a_tar_archive_is_pinned_by_its_digest(tmp_path: Path) -> None:
    """Its digest is recorded; given, it is checked, and what is known needs no network. Links and ways out of it
    are left out."""
    digest = f"sha256:{hashlib.sha256(GOOD).hexdigest()}"
    answers: dict[str, bytes | str] = {"/a/market-1.0.tar.gz": GOOD, "/moved.tar.gz": "/a/market-1.0.tar.gz"}
    with files_over_http(answers) as (url, requests):
        where = f"{url}/a/market-1.0.tar.gz"
        skill = Skill.remote(where, path="skills/fx")
        assert skill.origin
        assert skill.origin.model_dump() == {"source": where, "path": "skills/fx", "revision": digest}
        assert set(skill.files) == {"rates.csv", "run.sh"}
        assert skill.files["run.sh"].executable
        assert skill.contents[skill.files["rates.csv"].digest] == b"EUR,1.1\n"
        assert Skill.remote(f"{url}/moved.tar.gz#subdirectory=skills/fx").body == skill.body
        answers["/a/market-1.0.tar.gz"] = _tar(_member("SKILL.md", b"Other.\n"))
        before = len(requests)
        assert Skill.remote(where, path="skills/fx", revision=digest) == skill
        assert len(requests) == before
        with pytest.raises(UserError, match=r"is sha256:[0-9a-f]{64} now, not sha256:0000"):
            Skill.remote(where, revision=f"sha256:{'0' * 64}")
        assert Skill.remote(where).name == "market-1-0"
    assert Skill.remote(f"{where}#subdirectory=skills/fx&sha256={digest[7:]}") == skill


def test_a_zip_archive(tmp_path: Path) -> None:
    """As tar archives, with the executable bits that it has."""
    data = _zip({"skills/fx/SKILL.md": SKILL, "skills/fx/run.sh": b"x", "../out": b"x", "/abs": b"x"})
    with files_over_http({"/m.zip": data, "/bad.zip": data[:-40]}) as (url, _):
        skill = Skill.remote(f"{url}/m.zip", path="skills/fx")
        assert skill.files["run.sh"].executable
        with pytest.raises(UserError, match=r"no SKILL.md in the root of .*; there are skills in skills/fx"):
            Skill.remote(f"{url}/m.zip")
        with pytest.raises(UserError, match="is not a whole archive"):
            Skill.remote(f"{url}/bad.zip")


def test_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives, what it unfolds to, and how many entries; cut ones are said to be."""
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1 << 20)
    monkeypatch.setattr(archive, "MAX_DOWNLOAD", 1 << 20)
    answers: dict[str, bytes | str] = {
        "/bomb.tar.gz": gzip.compress(_plain_tar(b"\0" * (4 << 20))),
        "/header.tar.gz": gzip.compress(_huge_header()),
        "/long.tar.gz": b"\0" * (2 << 20),
        "/cut.tar.gz": GOOD[: len(GOOD) // 2],
        "/text.tar.gz": b"<html>",
        "/out.tar.gz": "http://example.org/x.tar.gz",
        "/loop.tar.gz": "/loop.tar.gz",
    }
    with files_over_http(answers) as (url, _):
        for name, error, said in (
            ("bomb", LimitExceeded, "unfolds to more than 1 MiB"),
            ("header", UserError, "one of its headers has 3145728 bytes"),
            ("long", LimitExceeded, "has more than 1 MiB"),
            ("cut", UserError, "is not a whole archive"),
            ("text", UserError, "is not a whole archive"),
            ("out", ProviderError, "redirects to a place that is not https"),
            ("loop", ProviderError, "redirects more than 5 times"),
            ("none", UserError, "answers with HTTP 404"),
        ):
            with pytest.raises(error, match=said):
                Skill.remote(f"{url}/{name}.tar.gz", path="skills/fx")
        monkeypatch.setattr(archive, "MAX_ENTRIES", 3)
        answers["/many.tar.gz"] = GOOD
        with pytest.raises(LimitExceeded, match="more than 3 entries"):
            Skill.remote(f"{url}/many.tar.gz", path="skills/fx")


def _odd_zip(name: bytes = b"SKILL.md", entries: int = 1, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive of one file, or whose directory has that one many times and says that it has no entry."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        made.writestr("n" * len(name), SKILL)
    data = out.getvalue().replace(b"n" * len(name), name)
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    directory = data[start:end] * entries
    closing = data[end : end + 8] + bytes(4) + len(directory).to_bytes(4, "little") + data[end + 16 :]
    return data[:start] + directory + (closing if entries > 1 else data[end:])


def _flagged(data: bytes) -> bytes:
    """Its names are said to be UTF-8."""
    at = data.index(b"PK\x01\x02")
    return data[: at + 8] + b"\x00\x08" + data[at + 10 :]


def test_hostile_archives_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Python's own readers raise on them, and before they have taken much memory."""
    pax = tarfile.TarInfo("SKILL.md")
    pax.pax_headers = {"mtime": "nan"}
    sparse = tarfile.TarInfo("SKILL.md")
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.map": "0," * 20_000 + "0", "GNU.sparse.size": "1"}
    answers: dict[str, bytes | str] = {
        "/time.tar.gz": _tar((pax, b"")),
        "/sparse.tar.gz": _tar((sparse, b"")),
        "/lzma.zip": _odd_zip(method=zipfile.ZIP_LZMA),
        "/bzip2.zip": _odd_zip(method=zipfile.ZIP_BZIP2),
        "/name.zip": _flagged(_odd_zip(name=b"SKILL.\xff\xff")),
        "/many.zip": _odd_zip(entries=200_000),
    }
    with files_over_http(answers) as (url, _):
        for name, error, said in (
            ("time.tar.gz", UserError, "a pax header has 'nan' for mtime"),
            ("sparse.tar.gz", UserError, "it is sparse"),
            ("lzma.zip", UserError, "not stored or deflated"),
            ("bzip2.zip", UserError, "not stored or deflated"),
            ("name.zip", UserError, "not a whole archive"),
            ("many.zip", LimitExceeded, "directory has more than 8 MiB"),
        ):
            tracemalloc.start()
            try:
                with pytest.raises(error, match=said):
                    Skill.remote(f"{url}/{name}")
                # The server is in this process as well.
                assert tracemalloc.get_traced_memory()[1] < 32 << 20
            finally:
                tracemalloc.stop()


@pytest.mark.parametrize(
    "beginning",
    [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: "],
)
def test_a_slow_server_meets_the_bound(beginning: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in its answer it is slow: each read of it is quick."""
    monkeypatch.setattr(deadline, "TIMEOUT_S", 1.0)
    began = time.monotonic()
    with dripping(beginning) as url, pytest.raises(LimitExceeded, match="has not been fetched after 1 s"):
        Skill.remote(f"{url}/x.tar.gz")
    assert time.monotonic() - began < 20


def _plain_tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info, _ = _member("SKILL.md", data)
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _huge_header() -> bytes:
    """A PAX header that says it is 3 MiB long, which a reader takes into memory."""
    info, _ = _member("x", type=tarfile.XHDTYPE)
    info.size = 3 << 20
    return info.tobuf(format=tarfile.USTAR_FORMAT) + b"1" * (3 << 20)
