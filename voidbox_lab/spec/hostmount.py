"""A folder of the host at a place in a box, as data: ``/srv/data:/data``, ``/srv/out:/out:rw``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from voidbox_lab.spec.base import Spec
from voidbox_lab.spec.policy import GuestPath
from voidbox_lab.spec.volume import MAX_MOUNTS, check_mount_path, check_places


def _check_source(path: str) -> str:
    if not path.startswith("/") or re.search(r"[\x00-\x1f:]", path) or ".." in path.split("/"):
        raise ValueError(f"{path!r} is not an absolute path of a folder without ':' and '..'")
    return path.rstrip("/") or "/"


def _check_place(path: str) -> str:
    """A new top-level directory, as for a volume, or one below ``/workspace``."""
    if path.startswith("/workspace/"):
        check_mount_path("/data" + path.removeprefix("/workspace"))
        if path.split("/")[2] in {"input", "output"}:
            raise ValueError(f"{path!r} is where inputs and outputs are; mount the folder beside it")
        return path
    return check_mount_path(path)


class HostMount(Spec):
    """A folder of the host and where a box has it. Parses from ``FOLDER:PATH``, ``FOLDER:PATH:ro`` and
    ``FOLDER:PATH:rw``; read-only unless told otherwise."""

    source: Annotated[str, Field(max_length=4000), AfterValidator(_check_source)]
    """On the host that runs the box."""
    path: Annotated[GuestPath, AfterValidator(_check_place)]
    read_only: bool = True
    """Else what the stage changed there is brought back when it has succeeded."""

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        source, *rest = value.split(":")
        path, mode = [*rest, "ro"][:2] if 1 <= len(rest) <= 2 else ("", "")
        if not path or mode not in {"ro", "rw"}:
            raise ValueError(f"{value!r} is not FOLDER:PATH or FOLDER:PATH:rw, such as /srv/data:/data")
        return {"source": source, "path": path, "read_only": mode == "ro"}

    @property
    def place(self) -> tuple[str, str]:
        """For `check_places`."""
        return f"mount {self.source!r}", self.path

    def __str__(self) -> str:
        return f"{self.source}:{self.path}:{'ro' if self.read_only else 'rw'}"


def _check_mounts(mounts: tuple[HostMount, ...]) -> tuple[HostMount, ...]:
    check_places([mount.place for mount in mounts])
    return mounts


HostMounts = Annotated[tuple[HostMount, ...], Field(max_length=MAX_MOUNTS), AfterValidator(_check_mounts)]
"""The folders of one box: none at the place of another, nor within."""
