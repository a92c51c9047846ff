"""npm packages as a layer: one package and what it depends on, in a directory of its own.

npm runs on this machine and executes nothing of what it installs (``--ignore-scripts``). A package that builds or
fetches something when it is installed will lack that. Programs are the package's own (``bin`` in its
package.json), linked to where commands are found.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError, Unavailable, UserError
from voidbox_lab.images import tools
from voidbox_lab.images.layers.base import LINKS, PREFIX, Base, Work, settle_modes
from voidbox_lab.images.layers.reference import Reference
from voidbox_lab.images.model import Progress
from voidbox_lab.images.unpack import Tree, make_directory

HOW = ("unpack", "layers/base", "layers/npm")
_TIMEOUT_S = 900.0
_TARGET = ("--os=linux", "--cpu=x64", "--libc=glibc")
_OPTIONS = (
    "--ignore-scripts",
    "--omit=dev",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--loglevel=error",
)
_REGISTRY_ONLY = (
    # A package's dependencies may be addresses and paths: of this host's network, and of this host.
    "--allow-git=none",
    "--allow-remote=none",
    "--allow-file=none",
    "--allow-directory=none",
    # For an npm that does not know the first of these (before 11.9); without the others (before 11.14) addresses
    # are asked while it plans, as docs/security.md says.
    "--git=/bin/false",
)
_MAX_PACKAGES = 5000
_LOCK = "package-lock.json"
_OUTSIDE = "package-from-outside"
_UNKNOWN = re.compile(r"\b404\b|ETARGET|notarget|ENOVERSIONS|EINVALIDPACKAGENAME")


def key(_base: Base, _reference: Reference) -> Any:
    """What a plan depends on besides its reference."""
    return list(_TARGET)


def plan(work: Work, reference: Reference) -> dict[str, Any]:
    """The exact packages and their integrities, as npm's own lock file has them.

    Raises:
        UserError: there is no such package or version, or it depends on what is not in a registry.
        Unavailable: npm is missing, or the registry cannot be reached.
    """
    directory = work.new()
    (directory / "package.json").write_text('{"name": "voidbox-layer", "private": true}', encoding="ascii")
    wanted = f"{reference.name}@{reference.version or 'latest'}"
    install = ["install", "--save-exact", wanted]
    try:
        _npm(work, [*install, "--package-lock-only"], directory, reference)
    except UserError as error:
        # While it only plans, npm 11 takes the archive of a package with a lock file of its own for something from
        # outside (npm/cli#9800). Installing tells the two apart.
        if error.cause != _OUTSIDE:
            raise
        _npm(work, install, directory, reference)
    lock = {
        "name": reference.name,
        "package": _read(directory / "package.json"),
        "lock": _read(directory / _LOCK),
    }
    for path, entry in _entries(lock):
        if not str(entry.get("integrity", "")).startswith("sha512-"):
            raise UserError(
                f"{reference} depends on {path.rpartition('node_modules/')[2]}, which comes from outside the "
                "registry or without a sha512 integrity, so that what is installed could not be pinned; choose "
                "another version.",
                cause="no-package",
            )
    return lock


def files(lock: dict[str, Any]) -> list[dict[str, Any]]:
    """What was planned, for a manifest. Not where it came from: that may be a mirror of this network's own."""
    return [
        {"name": path.rpartition("node_modules/")[2], "version": entry["version"], "digest": entry["integrity"]}
        for path, entry in _entries(lock)
    ]


def inputs(_base: Base, lock: dict[str, Any]) -> Any:
    """What the layer depends on."""
    return [lock["name"], [[path, e["version"], e["integrity"]] for path, e in _entries(lock)], list(_TARGET)]


def fill(work: Work, lock: dict[str, Any], tree: Tree) -> None:
    """Install exactly what was planned, and link its programs.

    Raises:
        Unavailable: npm is missing, or a package is neither cached nor to be had.
        ProviderError: what was fetched is not what was promised.
    """
    name = lock["name"]
    work.report(Progress("packages", f"Installing npm:{name} and {len(files(lock)) - 1} more into a layer"))
    directory = work.new()
    for file, content in (("package.json", lock["package"]), (_LOCK, lock["lock"])):
        (directory / file).write_text(json.dumps(content), encoding="utf-8")
    _npm(work, ["ci", "--prefer-offline", "--install-links"], directory, None)
    modules = directory / "node_modules"
    # npm's notes to itself; they name the registry.
    (modules / ".package-lock.json").unlink(missing_ok=True)
    settle_modes(modules)
    home = make_directory(tree.place(f"{PREFIX}/npm/{name}", follow=True))
    shutil.move(modules, home / "node_modules")
    package = home / "node_modules" / name
    for program, file in _programs(_read(package / "package.json"), name).items():
        inside = Tree(home).place(f"node_modules/{name}/{file}", follow=True)
        if not inside.is_file():
            raise ProviderError(f"npm:{name} declares the program {program}, but has no {file}.", cause="damaged")
        inside.chmod(0o755)
        link = tree.place(f"{LINKS}/{program}")
        make_directory(link.parent)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/{PREFIX}/npm/{name}/{inside.relative_to(home).as_posix()}")


def _programs(package: dict[str, Any], name: str) -> dict[str, str]:
    """Program to file, from ``bin`` (npm's package.json documentation); what could be no program is left out."""
    named = package.get("bin", {})
    if isinstance(named, str):
        named = {name.rpartition("/")[2]: named}
    if not isinstance(named, dict):
        return {}
    return {
        program: file
        for program, file in named.items()
        if isinstance(file, str)
        and program.replace("-", "").replace("_", "").replace(".", "").isalnum()
        and not program.startswith((".", "-"))
        and len(program) <= 100
        and "\0" not in file
    }


def _entries(lock: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    packages = lock["lock"].get("packages")
    if not isinstance(packages, dict) or len(packages) > _MAX_PACKAGES:
        raise ProviderError("npm wrote a lock file without packages, or with too many.", cause="npm-output")
    return sorted((path, entry) for path, entry in packages.items() if path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(path.name)
    except (OSError, ValueError) as error:
        raise ProviderError(f"npm left no {path.name} that can be read.", cause="npm-output") from error
    return content


def _npm(work: Work, arguments: list[str], directory: Path, reference: Reference | None) -> None:
    cache = work.store.root / "npm"
    try:
        tools.run(
            ["npm", *arguments, *_OPTIONS, *_REGISTRY_ONLY, *_TARGET, f"--cache={cache}"],
            timeout_s=_TIMEOUT_S,
            cwd=directory,
        )
    except Unavailable:
        raise
    except ProviderError as error:
        said = re.sub(r"npm error |A complete log .*", "", tools.last_words(error))[:300].strip(" /}")
        what = str(reference) if reference else "a pinned package"
        if "EALLOW" in said:
            raise UserError(
                f"npm did not deliver {what}, since it depends on what comes from outside the registry ({said}); "
                "choose another version.",
                cause=_OUTSIDE,
            ) from error
        if reference and _UNKNOWN.search(said):
            raise UserError(
                f"There is no {what} in npm's registry, or something that it depends on is not there ({said}); "
                "check name and version.",
                cause="no-package",
            ) from error
        if "EINTEGRITY" in said:
            raise ProviderError(
                f"What npm fetched is not what was pinned ({said}); nothing of it is used.",
                cause="digest-mismatch",
            ) from error
        raise Unavailable(
            f"npm did not deliver {what} ({said}); check the network and npm's registry, then try again.",
            cause="npm-refused",
        ) from error
