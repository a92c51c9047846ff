"""Adds agent CLIs to an image, each as a layer of its own made from an npm package on this machine.

Such packages may be proprietary: they are fetched by the user's own npm, under the user's own agreement with
their maker, and the layer never leaves the cache.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pydantic

from voidbox_lab.errors import Unavailable, UserError
from voidbox_lab.images import squashfs, tarballs, unpack
from voidbox_lab.images.assemble import how
from voidbox_lab.images.build import publish, read_manifest, resolve
from voidbox_lab.images.model import Image, Progress, Report, silent
from voidbox_lab.images.store import Blob, Store
from voidbox_lab.resources import data_dir
from voidbox_lab.settings import Settings
from voidbox_lab.spec.digest import digest_json

_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]{1,40})?")
_PathInBox = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9/._+-]*$", max_length=300)]


class AgentPackage(pydantic.BaseModel):
    """Where an agent CLI comes from: ``guest/image/agents/NAME.toml``."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    package: Annotated[str, pydantic.StringConstraints(pattern=r"^(@[a-z0-9-]+/)?[a-z0-9._-]+$")]
    version: str
    integrity: Annotated[str, pydantic.StringConstraints(pattern=r"^sha512-[A-Za-z0-9+/]{86}==$")]
    """Subresource integrity of `version`'s tarball, as npm has it."""
    licence: str
    files: dict[str, _PathInBox]
    rehearse: tuple[str, ...] = ()
    """A command that starts the CLI and ends at once, for boxes that have time before anybody wants them."""


def rehearsals(image: Image) -> list[tuple[str, ...]]:
    """The commands that start the agents of `image` once and change nothing, lab-agent's first. Blocking."""
    known = known_agents()
    packages = [_package(layer.name) for layer in image.layers if layer.name in known]
    return [("lab-agent", "--version"), *(package.rehearse for package in packages if package.rehearse)]


def add_agent(
    settings: Settings,
    image: Image,
    agent: str = "claude-code",
    *,
    version: str | None = None,
    progress: Report | None = None,
) -> Image:
    """`image` with the agent CLI `agent` on top, published as ``<name>+<agent>``.

    The layer is built once per version and needs no network afterwards. `version` overrides the tested one;
    its integrity is then the registry's word. Blocking; the first time as long as the download takes.

    Raises:
        UserError: no such agent, or a version that cannot be one.
        Unavailable: npm is missing, or the registry refuses or cannot be reached.
        ProviderError: what was fetched is not what was promised.
    """
    report = progress or silent
    package = _package(agent)
    if version is not None and not _VERSION.fullmatch(version):
        raise UserError(f"{version[:40]!r} is not a version of {agent}; write it like {package.version}.")
    wanted = version or package.version
    pinned = package.integrity if wanted == package.version else None
    store = Store(settings.cache)

    def make(target: Path) -> None:
        report(Progress("agent", f"Fetching {package.package} {wanted}. {package.licence}"))
        tarball = tarballs.fetch(package.package, wanted, pinned, target.parent, store.root / "npm")
        root = unpack.make_directory(target.parent / "root")
        tarballs.extract(tarball, unpack.Tree(root), package.files)
        report(Progress("agent", f"Packing the {agent} layer"))
        squashfs.make(root, target, compression="none")

    inputs = {
        "how": how("agents", "squashfs", "tarballs", "unpack"),
        "mksquashfs": squashfs.version(),
        "package": [package.package, wanted, pinned],
        "files": package.files,
    }
    name = image.name if image.name.endswith(f"+{agent}") else f"{image.name}+{agent}"

    def manifest(layer: Blob) -> dict[str, Any]:
        made = read_manifest(settings, image)
        layers = [d for d in made["layers"] if d["name"] != agent]
        below = made.get("from") if name == image.name else {"name": image.name, "digest": image.digest}
        about = {"name": agent, "version": wanted, "licence": package.licence}
        return made | {"layers": [*layers, asdict(layer) | about], "from": below}

    # What is there already must not wait for somebody else's build.
    if (layer := store.made(inputs, "layers")) is not None:
        with contextlib.suppress(Unavailable):
            there = resolve(settings, name)
            if there.digest == digest_json(manifest(layer)):
                return there
    with store.lock():
        return publish(store, name, manifest(store.step(inputs, "layers", make)))


def known_agents() -> list[str]:
    """Names of the agent CLIs that `add_agent` can add."""
    return sorted(p.stem for p in (data_dir("guest") / "image" / "agents").glob("*.toml"))


def _package(agent: str) -> AgentPackage:
    if agent not in known_agents():
        raise UserError(f"There is no agent CLI {agent[:40]!r} to add; known are {', '.join(known_agents())}.")
    text = (data_dir("guest") / "image" / "agents" / f"{agent}.toml").read_text(encoding="utf-8")
    return AgentPackage.model_validate(tomllib.loads(text))
