"""Makes squashfs layers that depend on nothing but the tree: no times, no owners, no xattrs, sorted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from voidbox_lab.images import tools

Compression = Literal["lz4", "zstd", "none"]
_TIMEOUT_S = 900.0

_OPTIONS: dict[Compression, tuple[str, ...]] = {
    "lz4": ("-comp", "lz4", "-Xhc"),
    "zstd": ("-comp", "zstd", "-Xcompression-level", "15"),
    "none": ("-comp", "lz4", "-noI", "-noD", "-noF", "-noX"),
}
"""Measured with a cold boot, then Python with eight imports, git, curl, jq and bash, under TCG, best of five, in
CPU seconds of QEMU: lz4 5.3, lz4 without fragments 4.5, none 5.0, none without fragments 4.0; zstd is worse still.
A fragment block holds many small files, and reading one of them unpacks all."""


def make(tree: Path, target: Path, *, compression: Compression) -> None:
    """Write the directory `tree` as a squashfs file to `target` (replaced if there); all of it belongs to root.

    Raises:
        Unavailable: squashfs-tools are missing.
        ProviderError: mksquashfs failed.
    """
    target.unlink(missing_ok=True)
    tools.run(
        [
            "mksquashfs", tree, target, "-noappend", "-no-progress", "-quiet", "-no-xattrs", "-reproducible",
            "-no-fragments", "-all-root", "-all-time", "0", "-mkfs-time", "0", "-no-exports", "-b", "131072",
            *_OPTIONS[compression],
        ],
        timeout_s=_TIMEOUT_S,
    )  # fmt: skip


def extract(layer: Path, target: Path, paths: Sequence[str]) -> None:
    """Unpack only `paths` (and what is below them) of `layer` into the new directory `target`.

    Raises:
        Unavailable: squashfs-tools are missing.
        ProviderError: unsquashfs failed.
    """
    tools.run(
        ["unsquashfs", "-no-progress", "-quiet", "-no-xattrs", "-d", target, layer, *paths], timeout_s=_TIMEOUT_S
    )


def version() -> str:
    """First line of ``mksquashfs -version``: another version may lay out the same tree otherwise."""
    return tools.run(["mksquashfs", "-version"], timeout_s=20).decode().splitlines()[0]
