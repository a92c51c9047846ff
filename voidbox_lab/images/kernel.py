"""Takes an uncompressed, PVH-bootable kernel out of a bzImage, and modules with their dependencies.

QEMU starts an ELF kernel with a PVH note directly, without firmware, boot sector code or decompression
under emulation: about 1.4 s less per cold boot under TCG. Formats: the Linux/x86 boot protocol
(Documentation/arch/x86/boot.rst), ELF (elf(5)), the PVH entry note (Xen's public/elfnote.h).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from voidbox_lab.errors import ProviderError
from voidbox_lab.images import tools

MAX_KERNEL_BYTES = 512 << 20
_PVH_NOTE = struct.pack("<III", 4, 8, 18) + b"Xen\0"  # namesz, descsz (8 on 64-bit), XEN_ELFNOTE_PHYS32_ENTRY
_PVH_NOTE_32 = struct.pack("<III", 4, 4, 18) + b"Xen\0"
_SIGNATURE_MAGIC = b"~Module signature appended~\n"


def extract_vmlinux(bzimage: bytes) -> bytes:
    """The ELF kernel inside `bzimage` (boot protocol 2.08 or newer, x86).

    Raises:
        ProviderError: not a bzImage, an unknown compression, a broken payload, or no PVH entry.
    """
    if len(bzimage) < 0x268 or bzimage[0x202:0x206] != b"HdrS":
        raise _bad("it is not a Linux/x86 boot image")
    (version,) = struct.unpack_from("<H", bzimage, 0x206)
    if version < 0x0208:
        raise _bad(f"its boot protocol {version >> 8}.{version & 0xFF:02} has no payload offset")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if len(payload) != length or length < 8:
        raise _bad("its payload lies outside the file")
    elf = _decompress(payload)
    if elf[:6] != b"\x7fELF\x02\x01":
        raise _bad("its payload is not a 64-bit little-endian ELF file")
    if _PVH_NOTE not in elf and _PVH_NOTE_32 not in elf:
        raise _bad("it has no PVH entry note (CONFIG_PVH)")
    return elf


def _decompress(payload: bytes) -> bytes:
    # Except for gzip, which has its own, the kernel's build appends the plain size (scripts/Makefile.lib).
    size = int.from_bytes(payload[-4:], "little")
    if size > MAX_KERNEL_BYTES:
        raise _bad(f"it claims to be {size} bytes when unpacked")
    body = payload[:-4]
    try:
        match payload[:6]:
            case b"\xfd7zXZ\0":
                plain = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(body, MAX_KERNEL_BYTES)
            case head if head[:2] == b"\x1f\x8b":
                plain = zlib.decompressobj(31).decompress(payload, MAX_KERNEL_BYTES)
            case head if head[:3] == b"BZh":
                plain = bz2.BZ2Decompressor().decompress(body, MAX_KERNEL_BYTES)
            case head if head[:4] == b"\x28\xb5\x2f\xfd":
                plain = tools.run(["zstd", "-dcq"], stdin=body, timeout_s=120)
            case head if head[:4] == b"\x02\x21\x4c\x18":
                plain = tools.run(["lz4", "-dcq"], stdin=body, timeout_s=120)
            case head if head[:3] == b"\x5d\x00\x00":
                plain = lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(body, MAX_KERNEL_BYTES)
            case head:
                raise _bad(f"its compression is unknown (it begins with {head.hex()})")
    except (lzma.LZMAError, zlib.error, OSError, ValueError, EOFError) as error:
        raise _bad(f"its payload is damaged ({error})") from error
    if len(plain) != size:
        raise _bad(f"its payload unpacks to {len(plain)} bytes where {size} were promised")
    return plain


def _bad(why: str) -> ProviderError:
    return ProviderError(f"The kernel image cannot be used: {why}.", cause="kernel-unusable")


def read_module(path: Path) -> bytes:
    """The module at `path` (``.ko``, or packed with ``.xz``, ``.zst`` or ``.gz``), without its signature.

    The signature is left out because the guest kernel does not enforce it, and checking RSA under TCG
    costs boot time for a file whose digest we hold anyway.

    Raises:
        ProviderError: not an ELF file, or packed in another way.
    """
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            data = lzma.decompress(data)
        case ".zst":
            data = tools.run(["zstd", "-dcq"], stdin=data, timeout_s=60)
        case ".gz":
            data = gzip.decompress(data)
    if data[:4] != b"\x7fELF":
        raise ProviderError(f"The kernel module {path.name} is not an ELF file.", cause="kernel-unusable")
    return strip_signature(data)


def strip_signature(module: bytes) -> bytes:
    """`module` without an appended signature (struct module_signature, include/linux/module_signature.h)."""
    if not module.endswith(_SIGNATURE_MAGIC):
        return module
    end = len(module) - len(_SIGNATURE_MAGIC)
    (length,) = struct.unpack_from(">I", module, end - 4)
    if length > end - 12:
        raise ProviderError("A kernel module's signature is longer than the module.", cause="kernel-unusable")
    return module[: end - 12 - length]


def depends(module: bytes) -> tuple[str, ...]:
    """Names of the modules that `module` says it needs (``depends=`` in its .modinfo section)."""
    found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module)
    return tuple(canonical(n) for n in found[1].decode("ascii").split(",") if n) if found else ()


def canonical(name: str) -> str:
    """A module's name as the kernel has it: file names may use dashes, names have underscores."""
    return name.replace("-", "_")


def index_modules(directory: Path) -> dict[str, Path]:
    """Module name to file for everything below ``lib/modules/<release>``."""
    return {canonical(p.name.split(".ko")[0]): p for p in directory.rglob("*.ko*") if p.is_file()}


def builtin_modules(directory: Path) -> frozenset[str]:
    """Names of the modules that are part of the kernel itself (``modules.builtin``)."""
    path = directory / "modules.builtin"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return frozenset(canonical(Path(line).name.split(".ko")[0]) for line in lines)


def load_order(
    wanted: Sequence[str], files: Mapping[str, bytes], builtin: Iterable[str]
) -> tuple[tuple[str, bytes], ...]:
    """(name, content) of `wanted` and all they depend on, each after its dependencies, built-in ones left out.

    `wanted` keeps its order where dependencies allow.

    Raises:
        ProviderError: a module is neither built in nor among `files`, or modules depend on each other in a ring.
    """
    have = frozenset(builtin)
    order: dict[str, bytes] = {}
    open_: list[str] = []

    def visit(name: str) -> None:
        if name in order or name in have:
            return
        if name in open_:
            raise ProviderError(f"Kernel modules depend on each other in a ring: {' → '.join([*open_, name])}.")
        if name not in files:
            raise ProviderError(
                f"The kernel package has no module {name}; name another kernel package in the image's recipe.",
                cause="kernel-unusable",
            )
        open_.append(name)
        for needed in depends(files[name]):
            visit(needed)
        open_.pop()
        order[name] = files[name]

    for name in wanted:
        visit(canonical(name))
    return tuple(order.items())
