"""Finds scripts by name: in the directory `VOIDBOX_SCRIPTS` names, then among those of the package."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml
from pydantic import ValidationError

from voidbox_lab.errors import UserError
from voidbox_lab.gateway.scripted.script import Script
from voidbox_lab.spec import sentence

PACKAGED = Path(__file__).parent / "scripts"
MAX_BYTES = 1 << 20
_NAME = re.compile(r"[\w][\w.-]{0,63}")


class Library:
    """Scripts in `directories`; the first that has a name wins."""

    def __init__(self, *directories: Path) -> None:
        self._directories = directories
        self._loaded: dict[Path, tuple[int, Script]] = {}

    @classmethod
    def default(cls) -> Library:
        """The user's own directory, if there is one, and the package's."""
        own = os.environ.get("VOIDBOX_SCRIPTS")
        return cls(*([Path(own).expanduser()] if own else []), PACKAGED)

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({p.stem for d in self._directories for p in d.glob("*.yaml")})

    def load(self, name: str) -> Script:
        """The script `name`, read again only after its file has changed.

        Raises:
            UserError: no such script, or a file that is not one.
        """
        # A name is no path: nothing outside the directories can be named.
        found = [d / f"{name}.yaml" for d in self._directories] if _NAME.fullmatch(name) else []
        path = next((p for p in found if p.is_file()), None)
        if path is None:
            raise UserError(
                f"There is no scripted model {name!r}; known are {', '.join(self.names)} "
                "(VOIDBOX_SCRIPTS may name a directory with more).",
                cause="unknown-script",
            )
        stamp = path.stat().st_mtime_ns
        if path not in self._loaded or self._loaded[path][0] != stamp:
            self._loaded[path] = stamp, _read(path)
        return self._loaded[path][1]


def _read(path: Path) -> Script:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"The script {path} is larger than {MAX_BYTES} bytes.")
        return Script.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as e:
        raise UserError(f"The script {path} is not valid: {sentence('Script', e)}") from e
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise UserError(f"The script {path} cannot be read: {' '.join(str(e).split())}.") from e
