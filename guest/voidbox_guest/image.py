"""What the image says of itself: where programs are, what environment they expect, what is to be mounted.

An image of our own says nothing, or names mounts. One that was made by others (an OCI image) has its environment
here, which every command gets, and our agent lies in it with an interpreter of its own below /usr/lib/voidbox.
"""

from __future__ import annotations

import os

from wire.jsonlite import loads

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE = "/usr/lib/voidbox/image.json"
OWN_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
OUR_PROGRAMS = "/usr/lib/voidbox/bin"
_NO_PROGRAMS = {
    "dev",
    "etc",
    "home",
    "lost+found",
    "media",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "var",
    "workspace",
}
_ACCOUNT = ("agent:x:1000:1000:agent:/home/agent:/bin/sh", "agent:x:1000:")
_ROOT = ("root:x:0:0:root:/root:/bin/sh", "root:x:0:")
_MAX_TABLE = 1 << 20


def _read() -> dict[str, Any]:
    try:
        with open(FILE, "rb") as file:
            said = loads(file.read(1 << 22))
    except FileNotFoundError:
        said = {}
    return {"foreign": False, "env": {}, "mounts": [], **said}


_SAID = _read()
FOREIGN: bool = _SAID["foreign"]
MOUNTS: list[str] = _SAID["mounts"]
"""Where the disks between the root's and the scratch disk belong, in their order."""
ENV: dict[str, str] = _SAID["env"]
"""What commands get besides; what is said with a command wins."""


def search_path(path: str) -> str:
    """An image's PATH, with all places after it that boxes look in."""
    known = [directory for directory in path.split(":") if directory.startswith("/")]
    return ":".join(dict.fromkeys([*known, *OWN_PATH.split(":"), OUR_PROGRAMS]))


PATH = search_path(ENV.get("PATH", "")) if FOREIGN else OWN_PATH


def environment() -> dict[str, str]:
    """What a command has in its environment whoever it belongs to."""
    return {"LANG": "C.UTF-8", **ENV, "PATH": PATH}


def programs() -> list[str]:
    """Where the image's own programs are, for an allowlist: files, and directories that end in ``/``.

    Nothing in there is the agent's to write: what an image of others gave to uid 1000 or to everybody was taken
    away when its layers were made, and file systems that were mounted since are left out.
    """
    if not FOREIGN:
        return ["/usr/", *(path + "/" for path in MOUNTS)]
    mounted = _mounted() - set(MOUNTS)
    found = []
    pending = ["/" + name for name in os.listdir("/") if name not in _NO_PROGRAMS]
    while pending:
        path = pending.pop()
        if path in mounted:
            continue
        if not os.path.isdir(path):
            if os.path.isfile(path):
                found.append(path)
        elif any(place.startswith(path + "/") for place in mounted):
            pending += [path + "/" + name for name in os.listdir(path)]
        else:
            found.append(path + "/")
    return sorted(found)


def _mounted() -> set[str]:
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as table:
            return {line.split()[1] for line in table}
    except FileNotFoundError:
        return set()


def prepare() -> None:
    """For PID 1, once: mount what the image names, and have the agent's account in an image of others.

    Raises OSError or OpError; a place that holds something, or leads through a link, is refused.
    """
    if MOUNTS:
        from .volumes import make_place

        first = _count_layers()
        for number, path in enumerate(MOUNTS):
            make_place(path)
            device = "/dev/vd" + "abcdefghijklmnopqrst"[first + number]
            kernel.mount(device, path, "squashfs", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)
    if FOREIGN:
        for table, ours, roots in zip(("/etc/passwd", "/etc/group"), _ACCOUNT, _ROOT, strict=True):
            _add_account(table, ours, roots)


def _count_layers() -> int:
    with open("/proc/cmdline", encoding="ascii", errors="replace") as file:
        words = file.read().split()
    return int(next(w for w in words if w.startswith("voidbox.layers=")).partition("=")[2])


def _add_account(table: str, ours: str, roots: str) -> None:
    """Put the agent, and root where it lacks, first in `table`: an id's first line is its name (passwd(5))."""
    try:
        with open(table, "rb") as file:
            there = file.read(_MAX_TABLE)
    except OSError:
        there = b""  # none, or a link into nothing
    lines = [line for line in there.split(b"\n") if line and not line.startswith(b"agent:")]
    known = any(line.startswith(b"root:") for line in lines)
    text = b"".join(line + b"\n" for line in ([] if known else [roots.encode()]) + [ours.encode(), *lines])
    if os.path.lexists(table):
        os.unlink(table)
    fd = os.open(table, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, text)
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)
