"""Distribution packages as a layer: what the image below lacks of one package's closure.

As in the image itself, no maintainer script is run. What they do and programs need is done instead: alternatives
that a script states in plain words, libraries in directories of their own, byte code. Users, services and
configuration asked for by questions are not made.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError, Unavailable, UserError
from voidbox_lab.images import bytecode, tools
from voidbox_lab.images.apt import Apt, Package
from voidbox_lab.images.layers.base import Base, Work
from voidbox_lab.images.layers.reference import Reference
from voidbox_lab.images.model import Progress
from voidbox_lab.images.unpack import Tree, make_directory

HOW = ("unpack", "bytecode", "layers/deb")
_FIELDS = ("Package", "Version", "Architecture", "Multi-Arch", "Provides")
"""Of an installed package, what others' dependencies are met by. Its own dependencies are left out: some of them
are not in the image, on purpose, and apt would want to mend that first."""
_UNKNOWN = re.compile(r"Unable to locate|no installation candidate|was not found|Couldn't find any package")
_CONFIGURATION = "etc/ld.so.conf.d"
_TIMEOUT_S = 60.0


def key(base: Base, _reference: Reference) -> Any:
    """What a plan depends on besides its reference."""
    return [base.recipe.image.architecture, [p.to_dict() for p in base.packages], base.recipe.packages.installers]


def plan(work: Work, reference: Reference) -> dict[str, Any]:
    """The package files that are missing below.

    Raises:
        UserError: there is no such package, or none of that version.
        Unavailable: apt is missing, or its lists cannot be had.
    """
    recipe = work.base.recipe
    apt = Apt(work.store.root, recipe.image.architecture, installed=_installed(work))
    have = {(p.name, p.version) for p in work.base.packages}
    if (reference.name, reference.version or work.base.version(reference.name)) in have:
        return {"packages": []}  # it is there
    name = reference.name + (f"={reference.version}" if reference.version else "")
    try:
        found = apt.resolve([name])
    except Unavailable as error:
        said = error.__cause__.message if isinstance(error.__cause__, ProviderError) else ""
        if _UNKNOWN.search(said):
            raise UserError(
                f"There is no package {reference} for the distribution of image "
                f"{work.base.image.name.partition('+')[0]!r}; check its name and version.",
                cause="no-package",
            ) from error
        raise
    skipped = frozenset(recipe.packages.installers)
    return {"packages": [p.to_dict() for p in found if p.name not in skipped and (p.name, p.version) not in have]}


def files(lock: dict[str, Any]) -> list[dict[str, Any]]:
    """What was planned, for a manifest."""
    return [
        {"name": p["name"], "version": p["version"], "digest": f"sha256:{p['sha256']}"} for p in lock["packages"]
    ]


def inputs(base: Base, lock: dict[str, Any]) -> Any:
    """What the layer depends on."""
    return [lock["packages"], base.recipe.packages.exclude, base.version(f"python3.{base.minor}-minimal")]


def fill(work: Work, lock: dict[str, Any], tree: Tree) -> None:
    """Unpack and configure what `plan` found.

    Raises:
        Unavailable: a package file is neither cached nor to be had.
        ProviderError: a package is damaged or unsafe.
    """
    packages = [Package(**p) for p in lock["packages"]]
    apt = Apt(work.store.root, work.base.recipe.image.architecture)

    def advance(done: int, total: int) -> None:
        tools.check_cancelled()
        work.report(Progress("packages", f"Downloading {packages[0].name} for a layer", done, total))

    debs = apt.fetch(packages, advance)
    inner = Tree(tree.root, exclude=work.base.recipe.packages.exclude)
    for package in packages:
        tools.check_cancelled()
        inner.add_deb(debs[package])
    for package in packages:
        _alternatives(debs[package], inner)
    _libraries(inner)
    if any(path.suffix == ".py" for path in (tree.root / "usr").rglob("*.py")):
        bytecode.compile_tree(work.python(), tree.root, "usr")


def _installed(work: Work) -> bytes:
    """The dpkg status of the image below."""
    debs = Apt(work.store.root, work.base.recipe.image.architecture).fetch(work.base.packages)
    stanzas = []
    for package in work.base.packages:
        tools.check_cancelled()
        fields = tools.run(["dpkg-deb", "--field", debs[package], *_FIELDS], timeout_s=_TIMEOUT_S)
        stanzas.append(b"Status: install ok installed\nMaintainer: none\nDescription: none\n" + fields)
    return b"\n".join(stanzas)


def _alternatives(deb: Path, tree: Tree) -> None:
    """The links of ``update-alternatives --install LINK NAME PATH PRIORITY`` (and its slaves) in a script.

    Only where they are written out: no shell is run. Links lead to the file itself, not through
    ``/etc/alternatives``.
    """
    try:
        script = tools.run(["dpkg-deb", "--info", deb, "postinst"], timeout_s=_TIMEOUT_S).decode(errors="replace")
    except ProviderError:
        return  # there is none
    for line in script.replace("\\\n", " ").splitlines():
        if "update-alternatives" not in line:
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        for at, word in enumerate(words):
            if word in {"--install", "--slave"}:
                _link(tree, words[at + 1 : at + 4])


def _link(tree: Tree, words: list[str]) -> None:
    if len(words) < 3 or any(re.search(r"[^A-Za-z0-9/._+-]", word) for word in words):
        return
    link, _, path = words
    if not link.startswith("/") or not path.startswith("/") or ".." in (link + path).split("/"):
        return
    place = tree.place(link)
    if tree.wanted(link.lstrip("/")) and not place.exists() and tree.place(path, follow=True).is_file():
        place.unlink(missing_ok=True)
        make_directory(place.parent)
        place.symlink_to(path)


def _libraries(tree: Tree) -> None:
    """Links to the libraries in directories that ld.so.conf(5) is to name, from where the loader looks anyway.

    Instead of ``ld.so.cache``, of which a root has one: layers are put together as stages need them.
    """
    directory = tree.place(_CONFIGURATION, follow=True)
    for file in sorted(directory.glob("*.conf")) if directory.is_dir() else ():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            named = line.partition("#")[0].strip()
            if not named.startswith("/") or ".." in named.split("/"):
                continue
            folder = tree.place(named, follow=True)
            target = sorted((tree.root / "usr" / "lib").glob("*-linux-gnu"))
            if not folder.is_dir() or not target or folder in target:
                continue
            for library in sorted(folder.glob("*.so*")):
                link = target[0] / library.name
                if not link.exists() and not link.is_symlink():
                    link.symlink_to(f"{named.rstrip('/')}/{library.name}")
