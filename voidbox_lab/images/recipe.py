"""The recipe of an image: data from ``guest/image/NAME.toml``, checked on the way in."""

from __future__ import annotations

import re
import tomllib
from typing import Annotated, Literal

import pydantic

from voidbox_lab.errors import UserError
from voidbox_lab.resources import data_dir

_Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]*$", max_length=100)]
_Path = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9/._+-]*$", max_length=300)]
_Module = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=60)]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class ImagePart(_Part):
    """What the image is."""

    architecture: Literal["amd64"]
    compression: Literal["lz4", "zstd", "none"]
    scratch_mb: Annotated[int, pydantic.Field(ge=16, le=1 << 20)]


class PackagesPart(_Part):
    """What of the distribution is in it."""

    install: tuple[_Name, ...]
    omit: tuple[_Name, ...] = ()
    installers: tuple[_Name, ...] = ()
    """What layers of packages on top leave out as well."""
    exclude: tuple[_Path, ...] = ()


class KernelPart(_Part):
    """Which kernel it boots, the modules it loads before its root is there, and those for a network of its own."""

    packages: tuple[_Name, ...]
    take: tuple[_Name, ...]
    modules: tuple[_Module, ...]
    network: tuple[_Module, ...] = ()


class InitramfsPart(_Part):
    """The static shell that sets the root file system up."""

    package: _Name
    binary: _Name


class Recipe(_Part):
    """A whole recipe."""

    image: ImagePart
    packages: PackagesPart
    kernel: KernelPart
    initramfs: InitramfsPart


def load(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        UserError: there is no such recipe, or it is not valid.
    """
    directory = data_dir("guest") / "image"
    known = sorted(p.stem for p in directory.glob("*.toml"))
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", name) or name not in known:
        raise UserError(f"There is no image recipe {name!r}; known are {', '.join(known) or 'none'}.")
    path = directory / f"{name}.toml"
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, pydantic.ValidationError) as error:
        raise UserError(f"The image recipe {path.name} is not valid ({error}); correct it.") from None
