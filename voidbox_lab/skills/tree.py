"""The files of a fetched skill: bounded, and safe to write. Not for where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.spec.skill import (
    MAX_FILES_BYTES,
    MAX_SKILL_BYTES,
    MAX_SKILL_FILES,
    SKILL_FILE,
    check_relative,
)

MAX_ENTRIES = 200_000
"""Most entries of a repository's or archive's listing."""
LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Listed:
    """A regular file in a listing, with what its reader needs to find it again."""

    path: str
    size: int
    executable: bool
    key: str = ""


def chosen(listing: Iterable[Listed], path: str, where: str) -> dict[str, Listed]:
    """Of a `listing`, the files of the skill at `path`: those in a directory with a SKILL.md, by their paths
    there; or one Markdown file. Hidden ones are left out, as they are of a skill on this machine.

    Raises:
        UserError: there is no skill, or it has a file whose name is none here.
        LimitExceeded: it is too large.
    """
    entries = list(listing)
    lone = [e for e in entries if path.endswith(".md") and e.path == path]
    if lone:
        found = {path.rsplit("/", 1)[-1]: lone[0]}
    else:
        start = f"{path}/" if path else ""
        inside = (e for e in entries if e.path.startswith(start))
        found = {e.path.removeprefix(start): e for e in inside}
        found = {p: e for p, e in found.items() if not any(part.startswith(".") for part in p.split("/"))}
        if SKILL_FILE not in found:
            raise UserError(f"There is no {SKILL_FILE} in {path or 'the root'} of {where}{_others(entries)}.")
    for name in found:
        try:
            check_relative(name)
        except ValueError as e:
            raise UserError(f"The skill in {path or 'the root'} of {where} has a bad file name: {e}.") from e
    # The skill itself is one more.
    total = sum(e.size for e in found.values())
    if len(found) > MAX_SKILL_FILES + 1 or total > MAX_FILES_BYTES + MAX_SKILL_BYTES:
        raise LimitExceeded(
            f"The skill in {path or 'the root'} of {where} has {len(found)} files of {total >> 20} MiB; the limit "
            f"is {MAX_SKILL_FILES} files and {MAX_FILES_BYTES >> 20} MiB.",
            limit="skill",
        )
    return found


def _others(entries: list[Listed]) -> str:
    places = [e.path.removesuffix(SKILL_FILE).rstrip("/") for e in entries if e.path.split("/")[-1] == SKILL_FILE]
    shown = ", ".join(p if p.isprintable() else ascii(p) for p in sorted(places)[:8] if len(p) < 200)
    if not shown:
        return ", nor anywhere else in it"
    return f"; there are skills in {shown}" + (", …" if len(places) > 8 else "")


def write(directory: Path, files: Mapping[str, tuple[bytes, bool]]) -> None:
    """Put `files`, path to bytes and whether executable, into a new `directory`."""
    for name, (data, executable) in files.items():
        if data.startswith(LFS):
            raise UserError(
                f"The skill's file {name} is kept in Git LFS, which is not fetched; use a copy without it."
            )
        path = directory / check_relative(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if executable else 0o644)
