"""The files that a spec file names: found beside it, read once, within bounds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from voidbox_lab.errors import UserError
from voidbox_lab.spec.digest import digest_file
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.mapping import item_bytes, item_file
from voidbox_lab.spec.remote import RemoteRef
from voidbox_lab.spec.run import MAX_STAGES
from voidbox_lab.spec.skill import Skill

MAX_PROMPT = 1 << 20
"""Bytes; as long as a prompt may be."""
MAX_ITEMS_FILE = 16 << 20
"""Bytes of a file to map over."""
T = TypeVar("T")


class Reading:
    """Reads what stands beside one spec file. Paths are relative to its directory; ``~`` is not expanded."""

    def __init__(self, base: Path, fetch: Callable[[RemoteRef], Skill | None] | None = None) -> None:
        self.base = base
        self._fetch = fetch
        self.unfetched: list[RemoteRef] = []
        """Remote skills that `fetch` did not have."""
        self.files: dict[str, Path | bytes] = {}
        """Digest to where its bytes are: what has to be uploaded before the run begins."""
        self._known: dict[tuple[str, str], Any] = {}

    @classmethod
    def nowhere(cls) -> Reading:
        """One that has no remote skills; for what is checked of a file by itself."""
        return cls(Path("/"))

    def prompt(self, name: str) -> str:
        """The text of a prompt file. `UserError` if it cannot be read, is too long, or empty."""
        return self._once("prompt", name, self._prompt)

    def skill(self, name: str) -> Skill:
        """A skill from a SKILL.md file or its directory; `UserError` as `Skill.file`."""
        return self._once("skill", name, self._skill)

    def remote(self, ref: RemoteRef) -> Skill | None:
        """A pinned remote skill; None where it is not here and must not be fetched, or there is nobody to ask.

        Raises:
            UserError: it is not pinned, or what fetching it raises.
        """
        if not ref.pinned:
            found = f"'git ls-remote {ref.source} {ref.revision or 'HEAD'}' says which commit that is now"
            if ref.form == "archive":
                found = "sha256sum of the archive says which"
            raise UserError(f"a remote skill in a file has an exact revision, so that it stays the same; {found}")

        def fetched(_path: Path) -> Skill | None:
            skill = self._fetch(ref) if self._fetch else None
            if skill is None:
                self.unfetched.append(ref)
            else:
                self.files.update(skill.contents)
            return skill

        return self._once("remote", str(ref), fetched)

    def folder(self, name: str) -> str:
        """The absolute path of a folder. `UserError` if it is relative and there is none."""
        path = self.base / name
        if not Path(name).is_absolute():
            path = path.resolve()
            if not path.is_dir():
                raise UserError(f"there is no folder {path}; paths are relative to the spec file")
        return str(path)

    def input(self, name: str) -> InputFile:
        """A file for a box, to be uploaded. `UserError` if it is none that can be read."""
        return self._once("input", name, self._input)

    def items(self, name: str) -> list[InputFile]:
        """The items of a ``.json`` file (an array) or a ``.csv`` file (an object per row, its values text).

        Raises:
            UserError: it cannot be read, or is neither.
        """
        return self._once("items", name, lambda path: self.values(_values(path)))

    def values(self, values: list[Any]) -> list[InputFile]:
        """Items as the files that they become. `UserError` for more than a run may have stages."""
        if len(values) > MAX_STAGES:
            raise UserError(f"{len(values)} items are more than the {MAX_STAGES} stages of a run")
        found = []
        for value in values:
            data = item_bytes(value)
            file = item_file(data)
            self.files[file.digest] = data
            found.append(file)
        return found

    def _once(self, kind: str, name: str, read: Callable[[Path], T]) -> T:
        if (kind, name) not in self._known:
            self._known[kind, name] = read(self.base / name)
        found: T = self._known[kind, name]
        return found

    def _prompt(self, path: Path) -> str:
        text = _text(path, MAX_PROMPT)
        if not text.strip():
            raise UserError(f"the prompt file {path} is empty")
        return text

    def _skill(self, path: Path) -> Skill:
        skill = Skill.file(path)
        for name, file in skill.files.items():
            self.files[file.digest] = path / name
        return skill

    def _input(self, path: Path) -> InputFile:
        _check(path)
        try:
            file = InputFile(digest=digest_file(path), size=path.stat().st_size)
        except OSError as e:
            raise UserError(f"the file {path} cannot be read ({e.strerror})") from e
        self.files[file.digest] = path
        return file


def _check(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory; name its files one by one")
    if not path.is_file():
        raise UserError(f"there is no file {path}; paths are relative to the spec file")


def _text(path: Path, limit: int) -> str:
    _check(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise UserError(f"the file {path} is larger than {limit >> 20} MiB")
        return data.decode("utf-8-sig")
    except OSError as e:
        raise UserError(f"the file {path} cannot be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise UserError(f"the file {path} is not UTF-8 text") from e


def _values(path: Path) -> list[Any]:
    match path.suffix.lower():
        case ".json":
            return _array(path)
        case ".csv":
            return _rows(path)
    raise UserError(f"{path.name} is neither .json nor .csv, which is what can be mapped over")


def _array(path: Path) -> list[Any]:
    try:
        found = json.loads(_text(path, MAX_ITEMS_FILE))
    except json.JSONDecodeError as e:
        raise UserError(f"the file {path} is not JSON: {e.msg} in line {e.lineno}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"the file {path} is not JSON that is read here") from e
    if not isinstance(found, list):
        raise UserError(f"the file {path} holds no JSON array; put the items into one")
    return found


def _rows(path: Path) -> list[Any]:
    reader = csv.DictReader(io.StringIO(_text(path, MAX_ITEMS_FILE), newline=""), strict=True)
    found: list[Any] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"line {reader.line_num} of {path} has not as many values as the header has names")
            found.append(row)
    except csv.Error as e:
        raise UserError(f"the file {path} is not CSV: {e} in line {reader.line_num}") from e
    return found
