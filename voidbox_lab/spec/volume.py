"""A named volume at a place in a box, as data: ``cache:/data``, ``models:/models:ro``. Not for its disk."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import permutations
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from voidbox_lab.spec.base import Name, Spec

MAX_MOUNTS = 8
"""Volumes of one box: the functions of one PCI slot (``libvirt-templates/box.xml.j2``)."""
MAX_MOUNT_PATH = 255
RESERVED = frozenset(
    {
        "bin",
        "boot",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "lost+found",
        "media",
        "newroot",
        "opt",
    }
    | {"proc", "root", "run", "sbin", "scratch", "sys", "tmp", "usr", "var", "workspace"}
)
"""Top-level directories that are the guest's own: no volume is mounted on or below them."""

_COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def check_mount_path(path: str) -> str:
    """`path` if something may be mounted there: absolute, normalised, not the guest's own. `ValueError` if not."""
    parts = path.removeprefix("/").split("/")
    if not path.startswith("/") or not all(_COMPONENT.fullmatch(part) for part in parts):
        raise ValueError(
            f"{path!r} is not a place for a volume: use an absolute path of letters, digits, '.', '_' and '-', "
            "without a '/' at its end, such as /data"
        )
    if parts[0] in RESERVED:
        raise ValueError(
            f"{path!r} belongs to the guest's own directory /{parts[0]}: mount the volume below /data, /mnt, "
            "/srv, /models, or another new top-level directory"
        )
    return path


MountPath = Annotated[str, Field(max_length=MAX_MOUNT_PATH), AfterValidator(check_mount_path)]
"""Where in a box: absolute, normalised, not the guest's own."""


class Mount(Spec):
    """A volume and where a box has it. Parses from ``VOLUME:PATH``, ``VOLUME:PATH:ro`` and ``VOLUME:PATH:rw``."""

    volume: Name
    path: MountPath
    read_only: bool = False
    """Many boxes may have it at the same time; else one."""

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        volume, *rest = value.split(":")
        path, mode = [*rest, "rw"][:2] if 1 <= len(rest) <= 2 else ("", "")
        if not path or mode not in {"ro", "rw"}:
            raise ValueError(f"{value!r} is not VOLUME:PATH or VOLUME:PATH:ro, such as cache:/data")
        return {"volume": volume, "path": path, "read_only": mode == "ro"}

    @property
    def place(self) -> tuple[str, str]:
        """For `check_places`."""
        return f"volume {self.volume!r}", self.path

    def __str__(self) -> str:
        return f"{self.volume}:{self.path}{':ro' if self.read_only else ''}"


def _check_mounts(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    names = [mount.volume for mount in mounts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"volume {twice[0]!r} is named twice")
    check_places([mount.place for mount in mounts])
    return mounts


def check_places(places: Iterable[tuple[str, str]]) -> None:
    """That no two of `places`, what has it and where, are in each other's way. `ValueError` if they are."""
    for (name, outer), (other, inner) in permutations(places, 2):
        if (inner + "/").startswith(outer + "/"):
            raise ValueError(f"the {name} at {outer!r} and the {other} at {inner!r} are in each other's way")


Mounts = Annotated[tuple[Mount, ...], Field(max_length=MAX_MOUNTS), AfterValidator(_check_mounts)]
"""The volumes of one box: each once, none within another."""
