"""The outer VM's root disk and kernel: a small Debian by mmdebstrap, cached by what goes into it.

Not for anything that changes with the checkout; that is the payload's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import filelock

HOOK = Path(__file__).parent.parent / "outer" / "root-hook"

PACKAGES = (
    "iproute2",
    "kmod",
    "libvirt-daemon-driver-qemu",  # the driver alone: the product runs it embedded, without a daemon
    "mount",
    "passwd",
    "python3",
    "python3-libvirt",
    "qemu-system-x86",
)

_BUILD_TIMEOUT_S = 420.0
_UNUSED_S = 14 * 24 * 3600.0
"""A root made for another release or recipe is removed when nobody has booted it for so long."""
_FREE_MB = 512
"""Room left on the root disk for logs and the like; sparse, so it costs nothing."""


class LaneError(Exception):
    """The lane cannot be set up or did not pass; one sentence for people."""


@dataclass(frozen=True)
class OuterRoot:
    """A bootable root: raw ext4 `disk`, its `kernel` (bzImage), and the `python` in it, as ``3.11``."""

    disk: Path
    kernel: Path
    python: str


def outer_root(cache: Path) -> OuterRoot:
    """The root disk from `cache`, built there first when it is not yet.

    Raises:
        LaneError: the package sources are not Debian's, or mmdebstrap or mkfs.ext4 failed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    sources = debian_sources()
    place = cache / f"root-{_key(sources)}"
    with filelock.FileLock(cache / "root.lock", timeout=_BUILD_TIMEOUT_S):
        for left in cache.glob(".building-*"):
            shutil.rmtree(left)  # nobody else builds while we hold the lock
        for other in cache.glob("root-*"):
            if other != place and time.time() - other.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(other, ignore_errors=True)
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as building:
                _build(Path(building), sources)
                (Path(building) / "root.tar").unlink()
                shutil.rmtree(Path(building) / "tree")
                Path(building).rename(place)
                # TemporaryDirectory wants something to remove.
                Path(building).mkdir()
        os.utime(place)
    return OuterRoot(place / "root.ext4", place / "vmlinuz", (place / "python").read_text().strip())


def debian_sources() -> tuple[str, ...]:
    """``sources.list`` lines of this machine's own Debian mirrors, other origins left out.

    Which key signs them is mmdebstrap's to find.

    Raises:
        LaneError: apt has no package lists, or they are not Debian's.
    """
    wanted = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    listed = run(
        ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages", "Architecture: amd64"],
        timeout_s=60,
    )
    lines = set()
    for line in listed.splitlines():
        origin, uri, release, component = line.split("|")
        if origin == "Debian" and component == "main":
            lines.add(f"deb {uri} {release} {component}")
    if not lines:
        raise LaneError(
            "The KVM lane builds a Debian VM, and apt here has no package lists of Debian's main; "
            "run `apt-get update` on Debian 12 or 13."
        )
    return tuple(sorted(lines))


def _key(sources: tuple[str, ...]) -> str:
    # Releases count, mirrors do not: the same packages come from each.
    releases = sorted(line.split()[-2] for line in sources)
    parts = ["1", *PACKAGES, *releases, HOOK.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build(place: Path, sources: tuple[str, ...]) -> None:
    tar, tree, disk = place / "root.tar", place / "tree", place / "root.ext4"
    # The hook goes in as text: without root it runs as an account that may not enter this user's home.
    # fmt: off
    run([
        "mmdebstrap", "--mode=auto", "--variant=apt", "--architectures=amd64", "--quiet",
        "--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Retries \"3\"",
        *(f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in ("doc", "info", "locale", "man")),
        f"--include={','.join(PACKAGES)}", f"--customize-hook={HOOK.read_text(encoding='utf-8')}",
        "", str(tar), "-",
    ], timeout_s=_BUILD_TIMEOUT_S, stdin="\n".join(sources) + "\n")
    # fmt: on
    tree.mkdir()
    make_disk(tree, disk, free_mb=_FREE_MB, unpack=tar)
    for name in ("vmlinuz", "python"):
        shutil.copyfile(tree / "lane" / name, place / name)


def make_disk(tree: Path, disk: Path, *, free_mb: int, unpack: Path | None = None) -> None:
    """A sparse ext4 file `disk` holding `tree` as root's, with `free_mb` MiB to spare.

    `unpack` names a tar file that is unpacked into `tree` first. Needs no root: where the user is somebody
    else, the files become root's in a user namespace of one user.
    """
    as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    if unpack is not None:
        # Device nodes need real root, and devtmpfs brings them.
        own = ["--no-same-owner"] if as_root else []
        run([*as_root, "tar", "-x", "-C", str(tree), *own, "--exclude=./dev/*", "-f", str(unpack)], timeout_s=120)
    used_kb = int(run([*as_root, "du", "-sk", str(tree)], timeout_s=60).split()[0])
    inodes = int(run([*as_root, "du", "--inodes", "-s", str(tree)], timeout_s=60).split()[0])
    # An eighth for block groups and inode tables; the rest of the file is a hole.
    size_kb = used_kb * 9 // 8 + inodes + (free_mb + 16) * 1024
    # No journal: the disk lives for one boot and nothing of it is kept.
    options = [
        "-q",
        "-F",
        "-O",
        "^has_journal",
        "-E",
        "root_owner=0:0,lazy_itable_init=1",
        "-N",
        str(inodes + 8192),
    ]
    run([*as_root, "mkfs.ext4", *options, "-d", str(tree), str(disk), f"{size_kb}k"], timeout_s=120)


def run(argv: list[str], *, timeout_s: float, stdin: str = "") -> str:
    """What a host tool printed.

    Raises:
        LaneError: it is missing, took longer than `timeout_s`, or failed; with its last lines.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    tool = next((word for word in argv if word not in {"unshare", "--map-root-user"}), argv[0])
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {"PATH": path, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
            start_new_session=True,
        )
    except FileNotFoundError:
        raise LaneError(f"The KVM lane needs `{argv[0]}`, which is not installed; run scripts/test-kvm.") from None
    with process:
        try:
            printed, complained = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise LaneError(f"`{tool}` did not end within {timeout_s:g} s.") from None
        finally:
            if process.poll() is None:
                _end(process)
    if process.returncode:
        said = "\n".join((complained or printed).strip().splitlines()[-15:])
        raise LaneError(f"`{tool}` failed with status {process.returncode}:\n{said}")
    return printed


def _end(process: subprocess.Popen[str]) -> None:
    """End a tool and all it started. mmdebstrap has mounts to undo, so it is asked first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
            return
