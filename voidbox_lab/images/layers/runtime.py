"""What packages need to run at all: one file of one npm package, pinned by ``guest/image/runtimes/NAME.toml``."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any

import pydantic

from voidbox_lab.images import tarballs
from voidbox_lab.images.agents import AgentPackage
from voidbox_lab.images.layers.base import Base, Work
from voidbox_lab.images.layers.reference import Reference
from voidbox_lab.images.model import Progress
from voidbox_lab.images.unpack import Tree
from voidbox_lab.resources import data_dir

HOW = ("unpack", "tarballs", "layers/runtime")


class Runtime(AgentPackage):
    """Where a runtime comes from, and the distribution packages it needs."""

    needs: tuple[Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]{1,99}$")], ...] = ()


def load(name: str) -> Runtime:
    """The runtime called `name`."""
    text = (data_dir("guest") / "image" / "runtimes" / f"{name}.toml").read_text(encoding="utf-8")
    return Runtime.model_validate(tomllib.loads(text))


def key(_base: Base, reference: Reference) -> Any:
    """What a plan depends on besides its reference."""
    return load(reference.name).model_dump(mode="json")


def plan(_work: Work, reference: Reference) -> dict[str, Any]:
    """What the recipe pins; no network."""
    return load(reference.name).model_dump(mode="json", include={"package", "version", "integrity", "files"})


def files(lock: dict[str, Any]) -> list[dict[str, Any]]:
    """What was planned, for a manifest."""
    return [{"name": lock["package"], "version": lock["version"], "digest": lock["integrity"]}]


def inputs(_base: Base, lock: dict[str, Any]) -> Any:
    """What the layer depends on."""
    return lock


def fill(work: Work, lock: dict[str, Any], tree: Tree) -> None:
    """Fetch and unpack it.

    Raises:
        Unavailable: npm is missing, or the registry refuses or cannot be reached.
        ProviderError: what was fetched is not what was promised.
    """
    package, version = lock["package"], lock["version"]
    work.report(Progress("packages", f"Fetching {package} {version} for a layer"))
    tarball = tarballs.fetch(package, version, lock["integrity"], work.new(), work.store.root / "npm")
    tarballs.extract(tarball, tree, lock["files"])
