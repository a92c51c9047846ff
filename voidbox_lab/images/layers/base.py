"""What layers of packages must know of the image below them: its packages, its Python, its recipe."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.images import recipe as recipes
from voidbox_lab.images import squashfs
from voidbox_lab.images.apt import Package
from voidbox_lab.images.build import read_manifest
from voidbox_lab.images.model import Image, Report
from voidbox_lab.images.store import Blob, Store
from voidbox_lab.settings import Settings

PREFIX = "usr/lib/voidbox-skills"
"""Below it each package of PyPI and npm has a place of its own, with what it depends on."""
LINKS = "usr/local/bin"
"""Where their programs are found."""
_PYTHON = re.compile(r"python3\.([0-9]{1,3})-minimal")


@dataclass(frozen=True)
class Base:
    """An image that packages can be put on."""

    image: Image
    manifest: dict[str, Any]
    packages: tuple[Package, ...]
    """Distribution packages that it has."""
    distribution: Blob
    """The layer they are in."""
    recipe: recipes.Recipe
    minor: int
    """Of its Python 3."""

    @classmethod
    def of(cls, settings: Settings, image: Image) -> Base:
        """What is known of `image`.

        Raises:
            UserError: it is not made of distribution packages that are known one by one.
        """
        manifest = read_manifest(settings, image)
        layer = next((d for d in manifest["layers"] if d["name"] == "distribution"), None)
        packages = tuple(Package(**p) for p in manifest["packages"].get("packages", ()))
        minors = [int(found[1]) for p in packages if (found := _PYTHON.fullmatch(p.name))]
        if layer is None or not minors:
            raise UserError(
                f"Packages cannot be put on the image {image.name!r}, since nothing is known of what is in it; "
                "install them in that image, or use the image 'default'.",
                cause="base",
            )
        recipe = recipes.load(image.name.partition("+")[0])
        return cls(image, manifest, packages, Blob.from_dict(layer), recipe, minors[-1])

    def version(self, package: str) -> str:
        """The version of the distribution package called `package`, or the empty string."""
        return next((p.version for p in self.packages if p.name == package), "")


class Work:
    """One build of layers: where to keep what is fetched, whom to tell, the image's Python once it is needed."""

    def __init__(self, store: Store, base: Base, directory: Path, report: Report) -> None:
        self.store, self.base, self.report = store, base, report
        self.directory = directory
        """For half-made things; gone afterwards."""
        self.downloads = store.root / "packages"
        self._python: Path | None = None

    def new(self) -> Path:
        """A new empty directory in `directory`."""
        return Path(tempfile.mkdtemp(dir=self.directory))

    def python(self) -> Path:
        """A tree with the Python of the image, which runs on this machine (see `bytecode.interpreter`)."""
        if self._python is None:
            target = self.directory / "python"
            squashfs.extract(
                self.store.path(self.base.distribution),
                target,
                ("usr/bin", "usr/lib64", "usr/lib/python3*", "usr/lib/*-linux-gnu"),
            )
            self._python = target
        return self._python


def settle_modes(tree: Path) -> None:
    """Give all in `tree` modes that do not depend on the umask: 0755 what is executable or a directory, else 0644.

    Raises:
        ProviderError: it holds something other than files, directories and links.
    """
    for path in (tree, *sorted(tree.rglob("*"))):
        if path.is_symlink():
            continue
        if not path.is_file() and not path.is_dir():
            raise ProviderError(f"The package holds {path.name!r}, which is no file.", cause="archive-unsafe")
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644)
