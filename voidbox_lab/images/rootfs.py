"""Does what the packages' maintainer scripts would have done, as far as a box needs it, without running them.

Users, certificates, alternatives, a few files in /etc, empty mount points. Everything is written with
fixed content, so that the tree depends on nothing but the packages.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from voidbox_lab.images.unpack import Tree, make_directory

AGENT_UID = 1000
_DIRECTORIES = {
    "dev": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr/lib/voidbox": 0o755,
    "usr/local/bin": 0o755,
    "var/log": 0o755,
    "var/tmp": 0o1777,
}
"""Mount points and what programs expect. The agent's own directories are in the scratch template (`scratch`):
an unprivileged builder cannot give files to another user, but can write an ext4 image that does."""

FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        f"agent:x:{AGENT_UID}:{AGENT_UID}:agent:/home/agent:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": (
        f"root:x:0:\ndaemon:x:1:\ntty:x:5:\nmail:x:8:\nutmp:x:43:\nagent:x:{AGENT_UID}:\nnogroup:x:65534:\n"
    ),
    # No password opens anything here: accounts are locked.
    "etc/shadow": "root:*:1:0:99999:7:::\nagent:*:1:0:99999:7:::\n",
    "etc/hostname": "voidbox\n",
    "etc/hosts": "127.0.0.1 localhost voidbox\n::1 localhost\n",
    # Nobody answers in a box without a network card; the resolver must fail at once, not after its time-out.
    "etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    "etc/nsswitch.conf": (
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n"
    ),
    "etc/profile": (
        "export PATH=/usr/local/bin:/usr/bin:/bin\n"
        '[ "$(id -u)" = 0 ] && PATH=/usr/local/sbin:/usr/sbin:/sbin:$PATH\n'
        "umask 022\n"
    ),
    "etc/machine-id": "",
    "etc/fstab": "",
    "etc/gitconfig": "[safe]\n\tdirectory = *\n[init]\n\tdefaultBranch = main\n[advice]\n\tdetachedHead = false\n",
    "etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n",
}

_LINKS = {
    "usr/bin/awk": "mawk",
    "usr/bin/python": "python3",
    "usr/bin/sh": "dash",
    "usr/bin/pager": "/usr/bin/cat",
    "etc/mtab": "../proc/self/mounts",
    "etc/localtime": "/usr/share/zoneinfo/UTC",
    "var/run": "/run",
    "var/lock": "/run/lock",
}


def configure(tree: Tree) -> None:
    """Make an unpacked tree ready to run. Runs nothing of what is in it."""
    for name, mode in _DIRECTORIES.items():
        make_directory(tree.place(name, follow=True)).chmod(mode)
    for name, text in FILES.items():
        _write(tree, name, text.encode())
    for name, target in _LINKS.items():
        path = tree.place(name)
        make_directory(path.parent)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    _certificates(tree)


def _certificates(tree: Tree) -> None:
    """What update-ca-certificates makes: one file with every root of the ca-certificates package."""
    source = tree.place("usr/share/ca-certificates", follow=True)
    found = sorted(source.rglob("*.crt"), key=lambda p: p.relative_to(source).as_posix())
    bundle = b"".join(p.read_bytes().rstrip() + b"\n" for p in found)
    _write(tree, "etc/ssl/certs/ca-certificates.crt", bundle)


def _write(tree: Tree, name: str, data: bytes) -> Path:
    path = tree.place(name)
    make_directory(path.parent)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o600 if name == "etc/shadow" else 0o644)
    return path
