"""Makes squashfs layers that depend on nothing but the tree: no times, no owners, no xattrs, sorted."""

from __future__ import annotations

import contextlib
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from voidbox_lab.images import tools

Compression = Literal["lz4", "zstd", "none"]
_TIMEOUT_S = 900.0
_TAR_TIMEOUT_S = 3600.0
"""For gigabytes that are read, checked and packed at once."""

OPTIONS: dict[Compression, tuple[str, ...]] = {
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
            *OPTIONS[compression],
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


def from_tar(
    target: Path, write: Callable[[tarfile.TarFile], None], *, newest: int, compression: Compression
) -> None:
    """Write a squashfs file to `target` (replaced if there) of what `write` adds to a tar archive, as that says.

    Owners, modes, times, devices and extended attributes (pax headers ``SCHILY.xattr.NAME``) are kept; directories
    must come before what is in them. The file system's root has mode 0755 and should be root's, but sqfstar 4.5
    gives it to who runs it, which shows only where a layer is mounted by itself, read-only. `newest`, in seconds,
    is the time of the newest file, and the root's.

    Raises:
        Unavailable: squashfs-tools are missing, or older than 4.5.
        ProviderError: sqfstar failed.
        LimitExceeded: it took too long.
    """
    target.unlink(missing_ok=True)
    command = [
        tools.find("sqfstar"), "-no-progress", "-quiet", "-exit-on-error", "-no-fragments",
        "-root-mode", "0755", "-root-uid", "0", "-root-gid", "0", "-b", "131072",
        *OPTIONS[compression], str(target),
    ]  # fmt: skip
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            # 4.5 has no other way to give its root, which is made now, a time: what is younger gets this one.
            env=tools.environment({"SOURCE_DATE_EPOCH": str(newest)}),
            start_new_session=True,
        ) as process,
    ):
        assert process.stdin is not None
        # A write blocks for as long as the other side does not read, so only somebody else can end that.
        over = threading.Event()

        def end() -> None:
            over.set()
            process.kill()

        late = threading.Timer(_TAR_TIMEOUT_S, end)
        late.daemon = True
        late.start()
        try:
            with tarfile.open(
                fileobj=process.stdin,
                mode="w|",
                format=tarfile.PAX_FORMAT,
                encoding="utf-8",
                errors="surrogateescape",
            ) as tar:
                write(tar)
            process.stdin.close()
            process.wait()
        except BrokenPipeError:
            process.wait()  # it says why itself
        except BaseException:
            process.kill()
            raise
        finally:
            late.cancel()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if over.is_set():
            raise tools.too_slow("sqfstar", _TAR_TIMEOUT_S)
        if process.returncode:
            said.seek(0)
            raise tools.failed("sqfstar", process.returncode, said.read())
