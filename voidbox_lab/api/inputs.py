"""What goes into a box, as a caller names it: paths, or file names with paths or bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from voidbox_lab.errors import UserError

Source = str | Path | bytes
"""A file by its path, or its bytes."""
Inputs = Source | Sequence[str | Path] | Mapping[str, Source] | None
"""A path, paths, or file names with a path or bytes each."""


def named(inputs: Inputs) -> dict[str, Path | bytes]:
    """File names in the box and where their bytes come from.

    Raises:
        UserError: bytes without a name, a directory, a missing file, two files of one name.
    """
    if inputs is None:
        return {}
    if isinstance(inputs, bytes):
        raise UserError('Bytes need a file name; pass them as {"name.csv": data}.')
    if isinstance(inputs, Mapping):
        return {name: s if isinstance(s, bytes) else _file(s) for name, s in inputs.items()}
    found: dict[str, Path | bytes] = {}
    for path in [inputs] if isinstance(inputs, str | Path) else inputs:
        file = _file(path)
        if file.name in found:
            raise UserError(f"Two inputs are named {file.name!r}; rename one, they share a directory in the box.")
        found[file.name] = file
    return found


def contents(inputs: Inputs) -> dict[str, bytes]:
    """File names in the box and their bytes, as they are now.

    Raises:
        UserError: as `named`, or a file that cannot be read.
    """
    found = {}
    for name, source in named(inputs).items():
        try:
            found[name] = source if isinstance(source, bytes) else source.read_bytes()
        except OSError as e:
            raise UserError(f"The input {str(source)!r} cannot be read ({e.strerror}); check the file.") from e
    return found


def _file(path: str | Path) -> Path:
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"The input {str(path)!r} is a directory; name its files one by one.")
    if not file.is_file():
        raise UserError(f"There is no input file {str(path)!r} (looked in {Path.cwd()}); check the path.")
    return file
