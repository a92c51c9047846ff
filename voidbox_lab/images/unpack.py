"""Unpacks package files into a directory tree, without root and without trusting their paths.

Packages are signed, but a path that climbs, a symbolic link that leads out of the tree, or a device node
must not be able to hurt the host whatever the archive says. Every path is resolved *inside* the tree, the
way the guest would see it (a link to /etc leads to the tree's etc), so that a merged /usr works too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from voidbox_lab.errors import ProviderError
from voidbox_lab.images import tools

MERGED = ("bin", "sbin", "lib", "lib64", "lib32", "libx32")
"""Top-level names that are links into /usr on a merged-/usr system (UsrMerge)."""

_MAX_LINKS = 40
_UNPACK_TIMEOUT_S = 300.0


def merge_usr(root: Path) -> None:
    """Prepare an empty tree with /bin → usr/bin and the others of `MERGED` that Debian has."""
    for name in MERGED[:4]:
        make_directory(root / "usr" / name)
        (root / name).symlink_to(f"usr/{name}")


def make_directory(path: Path) -> Path:
    """Make `path` and what is missing above it, each with mode 0755 whatever the umask; returns `path`."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
    return path


class Tree:
    """A directory that archives are unpacked into; `exclude` are path prefixes (no leading slash) left out."""

    def __init__(self, root: Path, exclude: Sequence[str] = (), include: Sequence[str] = ()) -> None:
        self.root = root
        self._exclude = tuple(p.strip("/") for p in exclude)
        self._include = tuple(p.strip("/") for p in include)

    def wanted(self, name: str) -> bool:
        """Whether the archive member `name` is to be unpacked."""
        if self._include and not any(_below(name, p) or _below(p, name) for p in self._include):
            return False
        return not any(_below(name, p) for p in self._exclude)

    def place(self, name: str, *, follow: bool = False) -> Path:
        """The host path for the guest path `name`, all links on the way resolved inside the tree.

        The last part itself is resolved only with `follow`.

        Raises:
            ProviderError: `name` climbs out, is empty, or leads through a ring of links.
        """
        pending = list(reversed(PurePosixPath(name.lstrip("/")).parts))
        done: list[str] = []
        links = 0
        while pending:
            part = pending.pop()
            if part in {"", ".", "/"}:
                continue
            if part == "..":
                # Members never need it; links do, and `/..` is `/` as in the guest.
                done[-1:] = []
                continue
            candidate = self.root.joinpath(*done, part)
            if candidate.is_symlink() and (pending or follow):
                links += 1
                if links > _MAX_LINKS:
                    raise _unsafe(name, "it leads through a ring of links")
                target = PurePosixPath(str(candidate.readlink()))
                if target.is_absolute():
                    done = []
                pending.extend(reversed(target.parts))
                continue
            done.append(part)
        return self.root.joinpath(*done)

    def add_tar(self, stream: IO[bytes]) -> None:
        """Unpack a tar stream. Owners become the caller, set-id bits go, devices are left out.

        Raises:
            ProviderError: a member's path is unsafe, or the archive is damaged.
        """
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    self._add(tar, member)
        except (tarfile.TarError, EOFError) as error:
            raise ProviderError(f"A package's archive is damaged ({error}).", cause="archive-damaged") from error

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = _clean(member.name)
        if not name or not self.wanted(name):
            return
        path = self.place(name)
        make_directory(path.parent)
        # Set-user-id and set-group-id never; the sticky bit only where it protects a shared directory.
        mode = member.mode & (0o1777 if member.isdir() else 0o777)
        if member.isdir():
            # A package may ship as a directory what is a link in a merged /usr.
            path = self.place(name, follow=True)
            make_directory(path).chmod(mode | 0o700)
        elif member.issym():
            if path.is_dir() and not path.is_symlink():
                return
            path.unlink(missing_ok=True)
            path.symlink_to(member.linkname)
        elif member.islnk():
            source = self.place(_clean(member.linkname))
            if not source.is_file() or source.is_symlink():
                raise _unsafe(name, f"it is a hard link to {member.linkname!r}, which is not there")
            path.unlink(missing_ok=True)
            os.link(source, path)
        elif member.isreg():
            content = tar.extractfile(member)
            if content is None:  # pragma: no cover - isreg() excludes it
                raise _unsafe(name, "it has no content")
            path.unlink(missing_ok=True)
            with path.open("xb") as out:
                shutil.copyfileobj(content, out, 1 << 20)
            path.chmod(mode | 0o400)
        # Devices, FIFOs and the like: the guest has devtmpfs.

    def add_deb(self, deb: Path) -> None:
        """Unpack the file-system archive of the package file `deb`.

        Raises:
            Unavailable: dpkg-deb is missing.
            ProviderError: the package is damaged or a path in it is unsafe.
        """
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(
                [tools.find("dpkg-deb"), "--fsys-tarfile", str(deb)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                env=tools.environment(),
            ) as process,
        ):
            assert process.stdout is not None
            try:
                self.add_tar(process.stdout)
                # Drain tar's padding, or dpkg-deb dies of a closed pipe.
                while process.stdout.read(1 << 16):
                    pass
                process.wait(_UNPACK_TIMEOUT_S)
            except ProviderError as error:
                process.kill()
                raise ProviderError(f"{deb.name}: {error.message}", cause=error.cause) from error
            except subprocess.TimeoutExpired:
                raise tools.too_slow("dpkg-deb", _UNPACK_TIMEOUT_S) from None
            finally:
                process.kill()
            if process.returncode:
                said.seek(0)
                raise tools.failed("dpkg-deb", process.returncode, said.read())


def _clean(name: str) -> str:
    """`name` without ``./`` and a leading slash; refuses to climb."""
    parts = [p for p in name.split("/") if p not in {"", "."}]
    if ".." in parts or "\0" in name:
        raise _unsafe(name, "it climbs out of the archive")
    return "/".join(parts)


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + "/")


def _unsafe(name: str, why: str) -> ProviderError:
    return ProviderError(f"The package member {name[:200]!r} was refused: {why}.", cause="archive-unsafe")
