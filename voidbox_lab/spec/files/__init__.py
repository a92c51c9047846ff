"""Specs as files: agents, pipelines, workflows and sandboxes in YAML or JSON, turned into runs.

    spec = read(Path("analyst.yaml"))
    spec.run        # a RunSpec, inputs by their digests
    spec.files      # digest to where its bytes are: to be uploaded before the run begins

Everything happens at the caller's side: a daemon sees the run alone. See docs/specs.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voidbox_lab.errors import UserError
from voidbox_lab.spec.files.build import ALL, built, stage_names
from voidbox_lab.spec.files.check import checked
from voidbox_lab.spec.files.graph import dangling
from voidbox_lab.spec.files.problems import Problem, SpecFileError, near
from voidbox_lab.spec.files.reading import Reading
from voidbox_lab.spec.files.shape import KINDS, File
from voidbox_lab.spec.files.source import load
from voidbox_lab.spec.model import Model
from voidbox_lab.spec.remote import RemoteRef, fetched
from voidbox_lab.spec.run import RunSpec
from voidbox_lab.spec.skill import Skill

__all__ = ["ALL", "KINDS", "SUFFIXES", "File", "Problem", "SpecFile", "SpecFileError", "read"]

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
"""What names of spec files end in."""


@dataclass(frozen=True)
class SpecFile:
    """A spec file that holds together."""

    path: Path
    written: File
    """What stands in it, by its kind."""
    run: RunSpec | None
    """The run that it declares; None for a sandbox without a command, and while a skill is not fetched."""
    files: Mapping[str, Path | bytes]
    """Digest to the path or the bytes of a file that the run names."""
    unfetched: Sequence[RemoteRef] = ()
    """Remote skills that were not to be had from `fetch`."""


def read(
    path: Path,
    *,
    models: Mapping[str, Model] | None = None,
    fetch: Callable[[RemoteRef], Skill | None] = fetched,
) -> SpecFile:
    """The spec in the file at `path`, with the files that it names looked at and digested.

    Args:
        models: models instead of what the file says, by stage; under `ALL`, of every other stage that has one.
        fetch: gives remote skills, or None for those that it does not have.

    Raises:
        SpecFileError: what is wrong with it, each with line, column and field.
        UserError: it cannot be read at all, or `models` names a stage that it does not have.
    """
    document = load(path)
    reading = Reading(path.parent, fetch)
    written, problems = checked(document, reading)
    problems += dangling(document)
    if problems or written is None:
        raise SpecFileError(path, problems)
    _check_names(path, written, models or {})
    if reading.unfetched:
        return SpecFile(path, written, None, reading.files, reading.unfetched)
    try:
        run = built(written, reading, models or {})
    except UserError as e:
        # What only the whole can be wrong about: names that mapping makes, the number of stages.
        raise SpecFileError(path, [document.problem((), e.message)]) from e
    return SpecFile(path, written, run, reading.files)


def _check_names(path: Path, written: File, models: Mapping[str, Model]) -> None:
    names = stage_names(written)
    for name in models.keys() - {ALL, *names}:
        raise UserError(f"There is no stage {name!r} in {path} to give a model{near(name, names)}")
