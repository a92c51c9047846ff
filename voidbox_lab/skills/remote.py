"""A remote skill as a `Skill` with its origin, from the cache where it is pinned and was fetched before."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from voidbox_lab.settings import Settings
from voidbox_lab.skills import archive, git
from voidbox_lab.skills.deadline import Deadline
from voidbox_lab.skills.tree import write
from voidbox_lab.spec.digest import digest_json
from voidbox_lab.spec.remote import ARCHIVES, RemoteRef
from voidbox_lab.spec.skill import Origin, Skill, read_skill

commit_of = git.commit_of


def fetch(ref: RemoteRef) -> Skill:
    """The skill at `ref`, with the commit, or the archive's digest, in its `origin`.

    Where `ref` is pinned and was fetched before, no network is needed.

    Raises:
        UserError: no such repository, revision or skill, or not a skill.
        ProviderError: the other side cannot be reached.
        LimitExceeded: it is too large, or takes too long.
    """
    if (known := cached(ref)) is not None:
        return known
    if ref.form == "archive":
        with archive.downloaded(ref) as (file, revision):
            files = archive.files_in(file, ref)
        return _kept(_origin(ref, revision), files)
    deadline = Deadline(ref.source)
    commit = git.commit_of(ref, deadline)
    origin = _origin(ref, commit)
    return _found(origin) or _kept(origin, git.files_at(ref, commit, deadline))


def cached(ref: RemoteRef) -> Skill | None:
    """The skill at `ref`, if that is pinned and it is here already."""
    return _found(_origin(ref, ref.revision or "")) if ref.pinned else None


def _origin(ref: RemoteRef, revision: str) -> Origin:
    return Origin(source=ref.source, path=ref.path, revision=revision)


def _place(origin: Origin) -> Path:
    """Its directory, or its Markdown file; named as it is there, since a skill without a name has that one."""
    leaf = (origin.path or origin.source).rstrip("/").rsplit("/", 1)[-1]
    for ending in ("" if origin.path else ".git", *ARCHIVES):
        leaf = leaf.removesuffix(ending)
    key = digest_json(origin.model_dump(mode="json")).removeprefix("sha256:")
    return Settings.from_env().cache / "skills" / key / (leaf or "skill")


def _found(origin: Origin) -> Skill | None:
    place = _place(origin)
    if not place.exists():
        return None
    return read_skill(place, kind="remote", origin=origin)


def _kept(origin: Origin, files: Mapping[str, tuple[bytes, bool]]) -> Skill:
    place = _place(origin)
    base = place.parent.parent
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=base, prefix=".new-") as new:
        # One that is no skill never becomes known.
        made = Path(new) / "it" / place.name
        write(made.parent if origin.path.endswith(".md") else made, files)
        skill = read_skill(made, kind="remote", origin=origin)
        try:
            made.parent.rename(place.parent)
        except OSError:
            if not place.exists():  # else somebody else has just put the same there
                shutil.rmtree(place.parent, ignore_errors=True)
                made.parent.rename(place.parent)
    return skill
