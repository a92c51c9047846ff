"""What goes into a box, as a caller names it: paths, or names with paths, bytes or values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voidbox_lab.api.values import named_bytes
from voidbox_lab.errors import UserError

Source = str | Path | bytes
"""A file by its path, or its bytes."""
Inputs = Source | Sequence[str | Path] | Mapping[str, Any] | None
"""A path, paths, or names with a path, bytes, or a value each; see `named_bytes` for what becomes of values."""


def named(inputs: Inputs) -> dict[str, Path | bytes]:
    """File names in the box and where their bytes come from.

    Raises:
        UserError: bytes without a name, a directory, a missing file, two files of one name, or a value without
            a form.
    """
    if inputs is None:
        return {}
    if isinstance(inputs, bytes | bytearray | memoryview):
        raise UserError('Bytes need a file name; pass them as {"name.csv": data}.')
    if isinstance(inputs, Mapping):
        return _of_values(inputs)
    paths = [inputs] if isinstance(inputs, str | Path) else inputs
    if not isinstance(paths, Sequence):  # a data frame, say
        raise UserError(f'A {type(inputs).__name__} needs a name; pass it as {{"data": value}}.')
    found: dict[str, Path | bytes] = {}
    for path in paths:
        file = _file(path)
        if file.name in found:
            raise UserError(f"Two inputs are named {file.name!r}; rename one, they share a directory in the box.")
        found[file.name] = file
    return found


def _of_values(inputs: Mapping[str, Any]) -> dict[str, Path | bytes]:
    found: dict[str, Path | bytes] = {}
    for given, value in inputs.items():
        name, source = (given, _file(value)) if isinstance(value, str | Path) else named_bytes(given, value)
        if name in found:
            raise UserError(f"Two inputs are named {name!r}; rename one, they share a directory in the box.")
        found[name] = source
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


def absolute_mount(mount: str) -> str:
    """``FOLDER:PATH[:rw]`` with the folder's whole path: the daemon has another working directory. A text that is
    no mount is left as it is, for `HostMount` to refuse."""
    folder, colon, rest = mount.partition(":")
    return f"{Path(folder).expanduser().absolute()}:{rest}" if folder and colon else mount
