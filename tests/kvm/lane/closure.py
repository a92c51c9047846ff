"""Copies the Python packages that some source files need, and nothing else, from this environment.

What is needed is read off the files' own imports and followed through the distributions' requirements, so no
list of ours can fall behind. Packages that the target brings itself (libvirt, from its distribution) are named
by the caller. Not a packager: console scripts are left out.
"""

from __future__ import annotations

import ast
import compileall
import py_compile
import re
import shutil
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

from .root import LaneError, run

_PIP_TIMEOUT_S = 180.0


def imported(sources: Iterable[Path]) -> set[str]:
    """Top-level names that `sources` import, at any depth, relative imports aside."""
    names = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").partition(".")[0])
    return names


def distributions(
    sources: Iterable[Path], *, also: Iterable[str] = (), without: Iterable[str], python: str
) -> set[str]:
    """Distributions that `sources` need on Python `python` (as ``3.11``), requirements included.

    `also` names distributions that no import shows (plugins); `without` leaves distributions out, as well as
    what only they need.
    """
    by_import = metadata.packages_distributions()
    found = {dist for name in imported(sources) for dist in by_import.get(name, ())}
    return requirements(found | set(also), without=without, python=python)


def requirements(names: Iterable[str], *, without: Iterable[str] = (), python: str) -> set[str]:
    """`names` and all they require, as normalized names (PEP 503).

    Raises:
        LaneError: one is required and not installed.
    """
    environment = {name: str(value) for name, value in default_environment().items()}
    environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    skipped = {_normal(name) for name in without}
    todo: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras = todo.pop()
        if _normal(name) in skipped or (_normal(name), extras) in seen:
            continue
        seen.add((_normal(name), extras))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            raise LaneError(
                f"The package {name} is needed in the KVM lane and not installed here; run scripts/setup --dev."
            ) from None
        todo += [
            (requirement.name, frozenset(requirement.extras))
            for requirement in map(Requirement, lines)
            if requirement.marker is None
            or any(requirement.marker.evaluate(environment | {"extra": extra}) for extra in extras or {""})
        ]
    return {name for name, _ in seen}


def copy(names: Iterable[str], target: Path, *, python: str) -> None:
    """Put the distributions `names`, in the versions installed here, into `target` for Python `python`.

    From this environment where its Python is of that minor version, else as wheels by this environment's pip.

    Raises:
        LaneError: pip found no wheel.
    """
    target.mkdir(parents=True, exist_ok=True)
    if python == ".".join(map(str, sys.version_info[:2])):
        for name in names:
            _copy_files(metadata.distribution(name), target)
        # Compiling takes the emulated CPU ten times as long; unchecked, so times lost on the way do not matter.
        compileall.compile_dir(
            target, quiet=2, stripdir=str(target), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    else:
        pins = [f"{name}=={metadata.version(name)}" for name in names]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--no-compile",
        ]
        run(
            [*pip, "--implementation=cp", f"--python-version={python}", f"--target={target}", *pins],
            timeout_s=_PIP_TIMEOUT_S,
        )


def _copy_files(distribution: metadata.Distribution, target: Path) -> None:
    for file in distribution.files or ():
        # ``../../../bin/x`` and the like are scripts; byte code is made afresh.
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        source = Path(str(file.locate()))
        if source.is_file():
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
