"""A file by its content, and what may be its name in a box."""

from __future__ import annotations

from pydantic import Field

from voidbox_lab.spec.base import Frozen


class InputFile(Frozen):
    """A file whose bytes are an artifact with this digest."""

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size: int = Field(ge=0)


def check_file_name(name: str) -> str:
    """`name` if it can be an input's: a file name without a directory. `ValueError` if not."""
    if "/" in name or "\0" in name or name in {"", ".", ".."} or len(name.encode()) > 255:
        raise ValueError(f"input {name!r} is not a plain file name")
    return name
