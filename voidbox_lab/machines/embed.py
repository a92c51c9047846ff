"""libvirt's QEMU driver inside this process, without a daemon: its directory tree and its one-per-process rule.

https://libvirt.org/drvqemu.html#embedded-driver. The driver stays loaded until the process ends, with one
root; libvirt itself locks ``run/qemu/driver.pid`` in it, which is what keeps two processes apart. The root
outlives the process, so the next one to open it finds the domains that were left running.

QEMU runs as this very user, root included: an account of its own could not reach files below the user's
private directories. As root it has no capabilities (see `capabilities`) and QEMU's seccomp sandbox all the same.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from voidbox_lab.errors import UserError

MAX_ROOT = 58
"""Bytes: a UNIX socket's name holds 107 (unix(7)); libvirt adds
``/lib/qemu/domain-NNNNN-vb-0123456789/monitor.sock``."""

QEMU_CONF = """\
# Written by voidbox-lab at each start.
# Without virtlogd, which is a daemon.
stdio_handler = "file"
# What a container usually lacks; the seccomp sandbox below needs none of it.
security_driver = "none"
cgroup_controllers = []
namespaces = []
# QEMU stays this user, and files stay whose they are.
dynamic_ownership = 0
remember_owner = 0
seccomp_sandbox = 1
# No guest memory in core files.
max_core = 0
dump_guest_core = 0
"""
QEMU_CONF_ROOT = 'user = "root"\ngroup = "root"\n'

_lock = threading.Lock()
_process_root: Path | None = None


def uri_of(root: Path) -> str:
    """The connection URI of the driver at `root`."""
    return f"qemu:///embed?root={quote(str(root))}"


def root_of(uri: str) -> Path | None:
    """The root named in an embedded driver's URI; None for any other URI."""
    parts = urlsplit(uri)
    if parts.scheme != "qemu" or parts.path != "/embed":
        return None
    roots = parse_qs(parts.query).get("root")
    return Path(roots[0]) if roots else None


def claim_root(wanted: Path) -> Path:
    """The root this process uses: `wanted`, or the one it opened earlier, as there can be only one.

    Raises:
        UserError: the path is too long for the sockets below it.
    """
    global _process_root
    with _lock:
        if _process_root is None:
            if len(os.fsencode(wanted)) > MAX_ROOT:
                raise UserError(
                    f"The path {wanted} is longer than {MAX_ROOT} bytes, too long for libvirt's sockets below it; "
                    "set XDG_RUNTIME_DIR to a shorter one."
                )
            _process_root = wanted
        return _process_root


def prepare(root: Path, cache: Path) -> None:
    """Lay out `root` for the driver: private, configured, with the QEMU capabilities known from before.

    libvirt asks a QEMU binary what it can do once (3-7 s) and keeps the answer; it notices by itself when the
    answer is stale, so a kept copy is safe to hand to a new root.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    _write(root / "etc" / "qemu.conf", QEMU_CONF + (QEMU_CONF_ROOT if os.geteuid() == 0 else ""))
    _copy_new(_kept(cache), _probed(root))
    # Names of unused memory files (see box.xml.j2) of domains whose end libvirt did not live to see.
    shutil.rmtree(root / "lib" / "qemu" / "ram", ignore_errors=True)


def keep_capabilities(root: Path, cache: Path) -> None:
    """Keep what libvirt learnt about QEMU for other roots of this user."""
    _copy_new(_probed(root), _kept(cache))


def holder(root: Path) -> int | None:
    """The process id in the driver's pid file; None when it cannot be read."""
    try:
        return int((root / "run" / "qemu" / "driver.pid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _probed(root: Path) -> Path:
    return root / "cache" / "qemu" / "capabilities"


def _kept(cache: Path) -> Path:
    return cache / "probe" / "qemu-capabilities"


def _copy_new(source: Path, target: Path) -> None:
    """Copy XML files that `target` lacks or has older; each appears whole or not at all."""
    if not source.is_dir():
        return
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in source.glob("*.xml"):
        copy = target / path.name
        if not copy.exists() or copy.stat().st_mtime < path.stat().st_mtime:
            with tempfile.NamedTemporaryFile(dir=target, prefix=".", delete=False) as part:
                part.write(path.read_bytes())
            shutil.copystat(path, part.name)
            Path(part.name).replace(copy)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, encoding="utf-8") as part:
        part.write(text)
    Path(part.name).replace(path)
