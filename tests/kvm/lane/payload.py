"""The outer VM's second disk: product, checks, their Python packages, and the guest image. Made for each run.

On it:

    init          the outer VM's init
    environment   shell variables for init and the checks
    repo/         product and tests, as in the checkout
    site/         Python packages that these import
    cache/        the product's cache, holding one guest image; boxes write theirs there too
"""

from __future__ import annotations

import shutil
from pathlib import Path

from voidbox_lab import images
from voidbox_lab.images.build import blobs
from voidbox_lab.images.store import Store
from voidbox_lab.settings import Settings

from . import closure
from .root import make_disk, run

REPO = Path(__file__).parents[3]
CHECKS = Path("tests/kvm/inside")

_ROOMS = ("box", "images", "machines", "spec", "vsock", "wire")
"""The rooms that checks run; those above (daemon, notebook) bring a hundred packages and touch no KVM."""

_PLUGINS = ("pytest", "pytest-timeout", "anyio")
_FROM_DISTRIBUTION = ("libvirt-python", "voidbox-lab")
_FREE_MB = 2048
"""For scratch disks of boxes; sparse, and dropped with the snapshot."""

CHECK_TIMEOUT_S = 300
"""The bound of one check, as pytest-timeout's; a box boots inside in about half a minute."""


def work_disk(place: Path, settings: Settings, *, python: str) -> Path:
    """Make the disk in the directory `place` for an outer VM with Python `python` (as ``3.11``).

    Raises:
        Unavailable: the guest image is not built.
        LaneError: a package cannot be had for that Python, or mkfs.ext4 failed.
    """
    tree, disk = place / "tree", place / "work.ext4"
    tree.mkdir()
    _copy_repo(tree / "repo")
    names = closure.distributions(
        _sources(tree / "repo"), also=_PLUGINS, without=_FROM_DISTRIBUTION, python=python
    )
    closure.copy(names, tree / "site", python=python)
    _copy_image(settings, tree / "cache")
    shutil.copy2(REPO / "tests/kvm/outer/init", tree / "init")
    (tree / "environment").write_text(
        "export PYTHONPATH=/work/repo:/work/site PYTHONDONTWRITEBYTECODE=1\n"
        "export VOIDBOX_CACHE=/work/cache VOIDBOX_REQUIRE_VM=1 VOIDBOX_KVM_LANE=1\n"
        f"CHECK_TIMEOUT_S={CHECK_TIMEOUT_S}\n",
        encoding="utf-8",
    )
    make_disk(tree, disk, free_mb=_FREE_MB)
    shutil.rmtree(tree)
    return disk


def _copy_repo(target: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "node_modules")
    for name in ("voidbox_lab", "guest", "libvirt-templates", "tests/vsock", "tests/kvm"):
        shutil.copytree(REPO / name, target / name, ignore=ignore)
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy2(REPO / name, target / name)


def _sources(repo: Path) -> list[Path]:
    """The source files that run inside: rooms, top-level modules, checks, and what checks import."""
    package = repo / "voidbox_lab"
    found = [*(package / name for name in ("__init__.py", "errors.py", "settings.py", "resources.py"))]
    for directory in (*(package / room for room in _ROOMS), repo / CHECKS):
        found += sorted(directory.rglob("*.py"))
    return [*found, repo / "tests/conftest.py", repo / "tests/vsock/conformance.py"]


def _copy_image(settings: Settings, target: Path) -> None:
    """The default image's files and manifest, at the same places below `target` as in the cache."""
    image = images.resolve(settings)
    name = image.digest.removeprefix("sha256:")
    images_of = settings.cache / "images" / image.name
    store = Store(settings.cache)
    files = [store.path(blob) for _, blob in blobs(images.read_manifest(settings, image))]
    files.append(images_of / name / "manifest.json")
    for file in files:
        place = target / file.relative_to(settings.cache)
        place.parent.mkdir(parents=True, exist_ok=True)
        # cp keeps the scratch template's holes; shutil would write 4 GB of zeros.
        run(["cp", "--sparse=always", "--preserve=mode,timestamps", str(file), str(place)], timeout_s=60)
    # Written, not copied: a build that ends meanwhile makes another image the current one.
    (target / images_of.relative_to(settings.cache) / "current").write_text(f"{name}\n", encoding="ascii")
