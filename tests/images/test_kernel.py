"""Kernels and modules, on synthetic files: what comes from packages must not be trusted."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable

import pytest

from voidbox_lab.errors import ProviderError
from voidbox_lab.images import kernel

PVH = struct.pack("<III", 4, 8, 18) + b"Xen\0" + bytes(8)
ELF = b"\x7fELF\x02\x01" + bytes(200) + PVH + bytes(range(256)) * 40


def _cli(tool: str, *options: str) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        return subprocess.run([tool, *options], input=data, capture_output=True, check=True).stdout

    return pack


# As the kernel's build does it: gzip carries its own size, the others get 4 bytes appended.
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda d: gzip.compress(d, mtime=0),
    "xz": lambda d: lzma.compress(d, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32) + struct.pack("<I", len(d)),
    "lzma": lambda d: lzma.compress(d, lzma.FORMAT_ALONE) + struct.pack("<I", len(d)),
    "bzip2": lambda d: bz2.compress(d) + struct.pack("<I", len(d)),
    "zstd": lambda d: _cli("zstd", "-cq")(d) + struct.pack("<I", len(d)),
    "lz4": lambda d: _cli("lz4", "-lcq")(d) + struct.pack("<I", len(d)),
}


def bzimage(payload: bytes, *, setup_sectors: int = 3, offset: int = 64, version: int = 0x20F) -> bytes:
    """A file with a boot header (Documentation/arch/x86/boot.rst) around `payload`."""
    head = bytearray((max(setup_sectors, 4 if setup_sectors == 0 else 0) + 1) * 512)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<II", head, 0x248, offset, len(payload))
    return bytes(head) + bytes(offset) + payload


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("setup_sectors", [0, 3, 30])
def test_vmlinux_comes_out_of_every_compression(packer: str, setup_sectors: int) -> None:
    """The ELF file inside is found and unpacked, byte for byte."""
    assert kernel.extract_vmlinux(bzimage(PACKERS[packer](ELF), setup_sectors=setup_sectors)) == ELF


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "boot image"),
        (b"MZ" + bytes(2000), "boot image"),
        (bzimage(PACKERS["xz"](ELF), version=0x0206), "boot protocol 2.06"),
        (bzimage(PACKERS["xz"](ELF))[:-9], "outside the file"),
        (bzimage(b"what?" + bytes(64)), "unknown"),
        (bzimage(PACKERS["xz"](b"no elf" + PVH)), "ELF"),
        (bzimage(PACKERS["xz"](ELF.replace(b"Xen\0", b"Zen\0"))), "PVH"),
        (bzimage(lzma.compress(ELF) + struct.pack("<I", len(ELF) + 1)), "promised"),
        (bzimage(lzma.compress(ELF)[:-30] + bytes(26) + struct.pack("<I", len(ELF))), "damaged|promised"),
        (bzimage(lzma.compress(ELF) + struct.pack("<I", 1 << 31)), "claims"),
    ],
)
def test_a_bad_kernel_is_refused_with_its_reason(image: bytes, why: str) -> None:
    """Nothing but a typed error comes of damaged or foreign files."""
    with pytest.raises(ProviderError, match=why):
        kernel.extract_vmlinux(image)


def module(*needs: str, signed: bool = False) -> bytes:
    """A stand-in for a .ko file with its .modinfo strings."""
    body = b"\x7fELF" + bytes(60) + b"\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0retpoline=Y\0"
    if signed:
        signature = b"s" * 77
        body += signature + struct.pack(">8xI", len(signature)) + b"~Module signature appended~\n"
    return body


def test_dependencies_load_first() -> None:
    """Each module comes after what it needs, built-in ones not at all, dashes are underscores."""
    files = {"a": module("b", "c-d"), "b": module("builtin"), "c_d": module("b"), "e": module()}
    order = kernel.load_order(["e", "a", "builtin"], files, {"builtin"})
    assert [name for name, _ in order] == ["e", "b", "c_d", "a"]


def test_a_missing_module_and_a_ring_are_errors() -> None:
    """The message names the module."""
    with pytest.raises(ProviderError, match="no module gone"):
        kernel.load_order(["a"], {"a": module("gone")}, ())
    with pytest.raises(ProviderError, match="a → b → a"):
        kernel.load_order(["a"], {"a": module("b"), "b": module("a")}, ())


def test_signatures_come_off() -> None:
    """What is left is the module as the compiler made it; a lying length is refused."""
    assert kernel.strip_signature(module("x", signed=True)) == module("x")
    assert kernel.strip_signature(module("x")) == module("x")
    with pytest.raises(ProviderError, match="longer"):
        kernel.strip_signature(struct.pack(">8xI", 1 << 30) + b"~Module signature appended~\n")


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".ko", bytes), (".ko.xz", lzma.compress), (".ko.gz", gzip.compress)],
    ids=["plain", "xz", "gzip"],
)
def test_packed_modules_are_read(tmp_path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    """Debian 12 ships plain modules, 13 and others packed ones."""
    path = tmp_path / f"virtio-ring{suffix}"
    path.write_bytes(pack(module("a", signed=True)))
    assert kernel.read_module(path) == module("a")
    assert kernel.index_modules(tmp_path) == {"virtio_ring": path}
