"""Layers as squashfs, by the real sqfstar: what they keep, what they lose, what is refused."""

from __future__ import annotations

import gzip
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.images.oci.maker import digest, entry, folder, link, tar, zstd
from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.images.model import silent
from voidbox_lab.images.oci import archive, layers, tree
from voidbox_lab.images.oci.archive import Allowance, Source
from voidbox_lab.images.store import Blob, Store
from voidbox_lab.settings import Settings

Seen = Callable[[Path], dict[str, str]]
Members = Sequence[tuple[tarfile.TarInfo, bytes]]


class Shop:
    """Makes layers in the store of `settings`."""

    def __init__(self, settings: Settings) -> None:
        self.store, self.directory, self.count = Store(settings.cache), settings.cache / "blobs", 0
        self.directory.mkdir(parents=True)

    def raw(self, data: bytes, packed: bytes | None = None) -> Source:
        """A source of the tar stream `data`."""
        self.count += 1
        path = self.directory / str(self.count)
        path.write_bytes(data if packed is None else packed)
        return Source(path, digest(data))

    def make(self, *sources: Source, flat: bool = False, allowance: Allowance | None = None) -> Path:
        """Where their squashfs is."""
        return self.store.path(self.blob(*sources, flat=flat, allowance=allowance))

    def blob(self, *sources: Source, flat: bool = False, allowance: Allowance | None = None) -> Blob:
        """Their squashfs."""
        return layers.make(
            self.store, sources, flat=flat, allowance=allowance or Allowance(), report=silent, what="it"
        )

    def of(self, *entries: tuple[tarfile.TarInfo, bytes]) -> Source:
        """A source of `entries`."""
        return self.raw(tar(entries))


@pytest.fixture
def shop(settings: Settings) -> Shop:
    """An empty one."""
    return Shop(settings)


def content(layer: Path, name: str) -> bytes:
    """A file's bytes."""
    return subprocess.run(["unsquashfs", "-cat", layer, name], capture_output=True, check=True).stdout


def attributes(layer: Path, directory: Path) -> str:
    """Extended attributes of everything in `layer`; the image's tools show them as root alone."""
    subprocess.run(["unsquashfs", "-n", "-q", "-d", directory, layer], capture_output=True, check=False)
    return subprocess.run(
        ["getfattr", "-R", "-d", "-m", "-", "."], cwd=directory, capture_output=True, text=True, check=True
    ).stdout


def test_what_a_file_is_stays(shop: Shop, seen: Seen) -> None:
    """Owners, modes, times, links, names of any length and encoding; the agent's id and set-id bits do not."""
    deep = "/".join(["é" * 60] * 12)
    layer = shop.make(
        shop.of(
            folder("opt", uid=7, gid=8, mode=0o750),
            entry("opt/a", b"hello", uid=12345678, gid=3_000_000_000, mode=0o6755, mtime=86400),
            link("opt/b", "opt/a", hard=True),
            link("opt/c", "../../../etc/passwd"),
            link("opt/d", "opt/c", hard=True),
            folder("mine", uid=1000, gid=1000, mode=0o777),
            entry("mine/f", b"x", uid=1000, gid=1000, mode=0o666),
            folder("shared", mode=0o1777),
            entry(f"{deep}/f", b"deep"),
            entry(b"raw\xff".decode("utf-8", "surrogateescape"), b"r"),
            entry("empty"),
        )
    )
    found = seen(layer)
    # sqfstar 4.5 gives its root to whoever runs it, whatever it is told.
    assert found[""].startswith(("drwxr-xr-x 0/0", f"drwxr-xr-x {os.getuid()}/{os.getgid()}"))
    assert found["opt"].startswith("drwxr-x--- 7/8")
    assert found["opt/a"] == found["opt/b"] == "-rwxr-xr-x 12345678/3000000000 5"
    assert found["opt/c"] == found["opt/d"] == "lrwxrwxrwx 0/0 19 -> ../../../etc/passwd"
    assert found["mine"].startswith("drwxrwxr-x 0/0"), "root's group, which the agent is not in"
    assert found["mine/f"].startswith("-rw-rw-r-- 0/0")
    assert found["shared"].startswith("drwxrwxrwt 0/0")
    assert found["empty"].startswith("-rw-r--r-- 0/0 0")
    assert content(layer, "opt/b") == b"hello"
    assert content(layer, f"{deep}/f") == b"deep"
    assert "raw\udcff" in found
    times = subprocess.run(["unsquashfs", "-UTC", "-ll", layer], capture_output=True, check=True).stdout
    assert b"1970-01-02 00:00 squashfs-root/opt/a" in times


def hiding(shop: Shop) -> Path:
    """A layer that hides things, and says things that only we may."""
    evil = entry("evil", type=tarfile.DIRTYPE, mode=0o755)
    evil[0].pax_headers = {"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.x": "y"}
    return shop.make(
        shop.of(
            folder("etc"),
            entry("etc/.wh.gone"),
            folder("data"),
            entry("data/new", b"1"),
            entry("data/.wh..wh..opq"),
            # Hidden and there again: a file is simply new, a directory starts from nothing; in any order.
            entry(".wh.file"),
            entry("file", b"2"),
            folder("again"),
            entry(".wh.again"),
            entry(".wh..wh.plnk"),
            entry("null", type=tarfile.CHRTYPE, devmajor=0, devminor=0),
            entry("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
            entry("fifo", type=tarfile.FIFOTYPE),
            evil,
        )
    )


def test_what_hides_others_becomes_overlayfs_s(shop: Shop, seen: Seen) -> None:
    """A whiteout is a device 0:0; other devices of an image are lost."""
    found = seen(hiding(shop))
    assert set(found) == {"", "again", "data", "data/new", "etc", "etc/gone", "evil", "file"}
    assert found["etc/gone"] == "c--------- 0/0 0, 0"


@pytest.mark.skipif(
    os.getuid() != 0,
    reason="not root, who alone can unpack trusted attributes (xattr(7)); run as root to see them",
)
def test_an_opaque_directory_has_overlayfs_s_attribute(shop: Shop, tmp_path: Path) -> None:
    """And no other attribute of an image gets there."""
    said = attributes(hiding(shop), tmp_path / "out").split("# file: ")[1:]
    assert sorted(s.split() for s in said) == [
        ["again", 'trusted.overlay.opaque="y"'],
        ["data", 'trusted.overlay.opaque="y"'],
    ]


def test_several_layers_become_one(shop: Shop, seen: Seen, tmp_path: Path) -> None:
    """With all that hides applied; a hard link survives the name it was made of."""
    lower = shop.of(
        folder("a", mode=0o700),
        entry("a/kept", b"kept"),
        entry("a/gone", b"gone"),
        entry("a/changed", b"old"),
        link("a/other", "a/changed", hard=True),
        folder("b/c"),
        entry("b/c/d", b"d"),
        folder("e"),
        entry("e/f", b"f"),
        folder("lib", mode=0o711),
        link("turned", "a"),
    )
    upper = shop.of(
        folder("a", mode=0o755),
        entry("a/.wh.gone"),
        entry("a/changed", b"new!"),
        folder("b"),
        entry("b/.wh..wh..opq"),
        entry("b/n", b"n"),
        entry("e", b"now a file"),
        entry("lib/x", b"x"),
        folder("turned"),
        folder("fresh"),
        entry("fresh/.wh.nothing"),
    )
    layer = shop.make(lower, upper, flat=True)
    found = seen(layer)
    assert set(found) == {
        *("", "a", "a/kept", "a/changed", "a/other", "b", "b/n", "e", "fresh", "lib", "lib/x", "turned"),
    }
    assert found["a"].startswith("drwxr-xr-x")
    assert found["e"].startswith("-rw")
    assert found["turned"].startswith("d")
    # A directory that is only the way to something does not change what is below it.
    assert found["lib"].startswith("drwx--x--x")
    assert (content(layer, "a/changed"), content(layer, "a/other")) == (b"new!", b"old")
    assert attributes(layer, tmp_path / "out") == ""


def test_the_last_of_a_name_wins(shop: Shop, seen: Seen) -> None:
    """Whatever it replaces; and a path through a link of the same layer leads where the link does."""
    layer = shop.make(
        shop.of(
            entry("twice", b"first"),
            entry("twice", b"second!"),
            folder("d"),
            entry("d/x", b"x"),
            entry("d", b"file"),
            folder("real"),
            link("way", "/real/../real"),
            entry("way/through", b"t"),
            link("up", "../../../.."),
            entry("up/top", b"top"),
        )
    )
    found = seen(layer)
    assert content(layer, "twice") == b"second!"
    assert content(layer, "d") == b"file"
    assert set(found) == {"", "twice", "d", "real", "real/through", "way", "up", "top"}


@pytest.mark.parametrize("pack", [lambda d: d, gzip.compress, zstd], ids=["tar", "gzip", "zstd"])
def test_every_packing_gives_the_same(shop: Shop, settings: Settings, pack: Callable[[bytes], bytes]) -> None:
    """The same tar gives the same squashfs, byte by byte, whatever it came in; it is made once."""
    raw = tar([folder("x"), entry("x/y", b"z" * 300_000)])
    first = shop.blob(shop.raw(raw))
    again = Shop(Settings(settings.cache / "2", settings.data, settings.runtime, settings.shm))
    packed = again.raw(raw, pack(raw))
    assert again.blob(packed) == first
    packed.path.unlink()
    assert again.blob(packed) == first


def huge(size: int) -> bytes:
    """A header that announces `size` bytes, and none of them."""
    info = tarfile.TarInfo("huge")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def long_header(kind: bytes) -> bytes:
    """A header of headers that says that it has 8 GiB."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 8 << 30
    return info.tobuf(tarfile.GNU_FORMAT)


def nested_headers() -> bytes:
    """Thousands of pax headers, each of which is about the next."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 12
    return (info.tobuf(tarfile.USTAR_FORMAT) + b"12 path=abc\n".ljust(512, b"\0")) * 5000


def negative() -> bytes:
    """A size below nothing."""
    buf = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    buf[124:136] = b"\xff" * 12
    buf[148:156] = b" " * 8
    buf[148:156] = b"%06o\0 " % sum(buf[:512])
    return bytes(buf)


def sparse() -> bytes:
    """A file of a terabyte that is a hole."""
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0",
                        "GNU.sparse.size": str(1 << 40), "GNU.sparse.name": "sparse"}  # fmt: skip
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([entry("../up", b"x")], "archive-unsafe"),
        ([entry("a/../../up", b"x")], "archive-unsafe"),
        ([entry("/etc/passwd", b"x")], "archive-unsafe"),
        ([folder("a"), entry("a/.wh...")], "archive-unsafe"),
        ([entry(".wh.")], "archive-unsafe"),
        ([entry("n" * 256, b"x")], "archive-unsafe"),
        ([entry("a/" * 300 + "x", b"x")], "archive-unsafe"),
        ([entry("a/" * 2100 + "x", b"x")], "archive-unsafe"),
        ([link("b", "nowhere", hard=True)], "archive-unsafe"),
        ([link("b", "../../etc/passwd", hard=True)], "archive-unsafe"),
        ([folder("d"), link("b", "d", hard=True)], "archive-unsafe"),
        ([link("a", "b"), link("b", "a"), entry("a/x", b"x")], "archive-unsafe"),
        ([link("a", "t" * 5000)], "archive-unsafe"),
        # Links that lead on and on: by their targets, and by directories that are made below one another.
        ([link("a", "d/" * 2040 + "d"), entry("a/x")], "archive-unsafe"),
        ([*(link(f"l{n}", f"l{n - 1}/" + "d/" * 150) for n in range(1, 9)), entry("l8/x")], "archive-unsafe"),
        ([link("a", "/".join(["n" * 250] * 15)), link("b", "a/" + "n" * 250), entry("b/x")], "archive-unsafe"),
        ([entry("a", pax_headers={"mtime": "nan"})], "archive-damaged"),
        ([entry("a", pax_headers={"size": "-1"})], "archive-damaged"),
        (long_header(tarfile.GNUTYPE_LONGNAME), "archive-unsafe"),
        (long_header(tarfile.XHDTYPE), "archive-unsafe"),
        (long_header(tarfile.XGLTYPE), "archive-unsafe"),
        (negative(), "archive-unsafe"),
        (sparse(), "archive-unsafe"),
        (nested_headers(), "archive-damaged"),
        (huge(1 << 20) + b"short", "archive-damaged"),
        (b"no archive at all" * 100, "archive-damaged"),
        (b"\x1f\x8bnot gzip", "archive-damaged"),
        (b"\x28\xb5\x2f\xfdnot zstd", "archive-damaged"),
        (gzip.compress(bytes(5000), mtime=0)[:-9], "archive-damaged"),
    ],
)  # fmt: skip
def test_hostile_layers_are_refused(shop: Shop, members: Members | bytes, cause: str) -> None:
    """Before anything is made of them; nothing is left and nothing was written elsewhere."""
    source = shop.raw(members) if isinstance(members, bytes) else shop.of(*members)
    with pytest.raises(ProviderError) as caught:
        shop.make(source)
    assert caught.value.cause == cause, caught.value
    left = [p for p in shop.store.root.rglob("*") if p.is_file() and p.parent != shop.directory]
    assert left == []


def test_layers_are_bounded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """In members and in bytes, over all layers together, before the bytes are there."""
    with pytest.raises(LimitExceeded):
        shop.make(shop.raw(huge(1 << 60)))
    bomb = gzip.compress(tar([entry("zeros", bytes(32 << 20))]))
    source = shop.raw(gzip.decompress(bomb), bomb)
    assert len(bomb) < 100_000
    with pytest.raises(LimitExceeded):
        shop.make(source, allowance=Allowance(unpacked=8 << 20))
    few = Allowance(members=5)
    shop.make(shop.of(*(entry(f"a{n}") for n in range(3))), allowance=few)
    with pytest.raises(LimitExceeded):
        shop.make(shop.of(*(entry(f"b{n}") for n in range(3))), allowance=few)


def test_directories_that_nobody_described_are_counted(shop: Shop) -> None:
    """A thousand members, each at the end of a way of its own, are two hundred thousand directories."""
    deep = [entry(f"{n}/" + "d/" * 198 + "f") for n in range(50)]
    with pytest.raises(LimitExceeded, match="files"):
        shop.make(shop.of(*deep), allowance=Allowance(members=5000))
    through = [link("way", "d/" * 150), *(entry(f"way/{n}/" + "e/" * 40 + "f") for n in range(50))]
    with pytest.raises(LimitExceeded, match="files"):
        shop.make(shop.of(*through), allowance=Allowance(members=2000))


def test_names_are_bounded(shop: Shop) -> None:
    """Few bytes of a layer may stand for many of paths, through a link; and links are as long as paths."""
    far = [link("w", "/".join(["n" * 200] * 15)), *(entry(f"w/{n}") for n in range(400))]
    with pytest.raises(LimitExceeded, match="names"):
        shop.make(shop.of(*far), allowance=Allowance(names=1 << 20))
    with pytest.raises(LimitExceeded, match="names"):
        shop.make(shop.of(*(link(f"{n}", "t" * 4000) for n in range(400))), allowance=Allowance(names=1 << 20))


def test_a_walk_holds_one_path_at_a_time() -> None:
    """Not those of all that is in a directory."""
    directory = tree.Node("directory", tree.Meta(0o755))
    directory.children = {str(n): tree.Node("file", directory.meta) for n in range(4000)}
    for _ in range(15):
        directory = tree.Node("directory", directory.meta, children={"n" * 250: directory})
    tracemalloc.start()
    try:
        assert sum(len(path) > 3000 for path, _ in tree.walk(directory)) > 4000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_deep_trees_are_stacked() -> None:
    """However deep Python's own stack happens to be already."""

    def chain(depth: int) -> tree.Node:
        top = node = tree.Node("directory", tree.Meta(0o755))
        for _ in range(depth):
            node.children["d"] = tree.Node("directory", node.meta)
            node = node.children["d"]
        return top

    assert sum(1 for _ in tree.walk(tree.stacked([chain(3000), chain(2000)]))) == 3000


@pytest.mark.parametrize("error", [RecursionError("deep"), ValueError("odd"), tarfile.ReadError("cut")])
def test_what_nobody_thought_of_is_refused_too(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever goes wrong with somebody else's layer is told as that, not as a fault of this program."""

    def fail(*_: object) -> None:
        raise error

    for name in ("read_layer", "stacked", "_write"):
        with monkeypatch.context() as patched:
            patched.setattr(layers, name, fail)
            with pytest.raises(ProviderError, match="cannot be read") as caught:
                shop.make(shop.of(entry("a")), flat=True)
            assert caught.value.cause == "archive-unsafe"


def test_reading_can_be_cancelled(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also within one large member, and before anything of it is used."""
    looked = 0

    def check() -> None:
        nonlocal looked
        looked += 1

    monkeypatch.setattr(archive.tools, "check_cancelled", check)
    source = shop.of(entry("large", bytes(20 << 20)))
    assert [member.name for _, _, member in archive.members(source, Allowance())] == ["large"]
    assert looked >= 20


def test_another_tar_than_promised_is_refused(shop: Shop) -> None:
    """Its diff id is what the image's configuration, and so its digest, stands for."""
    source = shop.of(entry("a", b"1"))
    with pytest.raises(ProviderError) as caught:
        shop.make(Source(source.path, digest(b"another")))
    assert caught.value.cause == "digest-mismatch"


def test_members_are_not_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """tarfile keeps every header unless told otherwise; half a million are a gigabyte."""
    path = tmp_path / "tar"
    path.write_bytes(tar([entry(f"f{n}") for n in range(500)]))
    most = 0
    for _, archived, _ in archive.members(Source(path, "")):
        most = max(most, len(archived.members))
    assert most <= 1


def test_a_tool_that_fails_says_why(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And one that dies at once does not hang the writer."""
    fake = tmp_path / "bin" / "sqfstar"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    fake.chmod(0o755)
    source = shop.of(*(entry(f"f{n}", bytes(100_000)) for n in range(20)))
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    with pytest.raises(ProviderError, match="no room"):
        shop.make(source)
