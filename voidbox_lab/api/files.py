"""Files that stages left, as their caller holds them. A guest wrote them: what becomes of them is bounded."""

from __future__ import annotations

import builtins
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from voidbox_lab.api.frames import READERS
from voidbox_lab.client import Client
from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import InputFile

if TYPE_CHECKING:
    import pandas as pd


class OutputFile:
    """A file that a stage left in ``/workspace/output``. Its bytes come from the daemon when asked for."""

    def __init__(self, stage: str, path: str, file: InputFile, settings: Settings | None = None) -> None:
        self.stage = stage
        self.path = path
        """Below ``/workspace/output``."""
        self.size = file.size
        """In bytes."""
        self.digest = file.digest
        self._settings = settings

    def bytes(self) -> builtins.bytes:
        """All of it."""
        with Client(self._settings) as client:
            return client.download(self.digest)

    def text(self, encoding: str = "utf-8") -> str:
        """All of it as text.

        Raises:
            UserError: it is not in this encoding.
        """
        try:
            return self.bytes().decode(encoding)
        except UnicodeDecodeError as e:
            raise self._other(f"{encoding} text", e) from e

    def json(self) -> Any:
        """What it says as JSON.

        Raises:
            UserError: it is not JSON.
        """
        try:
            return json.loads(self.bytes())
        except (ValueError, RecursionError) as e:
            raise self._other("JSON", e) from e

    def frame(self) -> pd.DataFrame:
        """The table in it, by its extension: ``.parquet``, ``.arrow``, ``.feather``, ``.csv``, ``.json``,
        ``.jsonl``.

        Raises:
            UserError: another extension, or it is no such file.
            LimitExceeded: more bytes or columns than a frame may have (limit ``frame``); see `frames`.
        """
        suffix = PurePosixPath(self.path).suffix.lower()
        if (read := READERS.get(suffix)) is None:
            raise UserError(
                f"{self.path!r} of stage {self.stage!r} is no table by its name ({', '.join(READERS)} are); "
                "read its bytes() instead."
            )
        data = self.bytes()
        try:
            return read(data)
        except LimitExceeded as e:
            said = f"{self.path!r} of stage {self.stage!r} {e.message}; save() it and read a part."
            raise LimitExceeded(said, limit=e.limit, value=e.value, unit=e.unit) from e
        except Exception as e:  # whatever a parser makes of bytes that a guest wrote
            raise self._other(f"a {suffix} table", e) from e

    def save(self, to: str | Path) -> Path:
        """Write it to `to`, or below its own name into the directory `to`; returns where.

        Raises:
            UserError: it cannot be written there.
        """
        to = Path(to).expanduser()
        to = to / PurePosixPath(self.path).name if to.is_dir() else to
        with Client(self._settings) as client:
            client.fetch(self.digest, to)
        return to

    def _other(self, what: str, error: Exception) -> UserError:
        said = "".join(c if c.isprintable() else " " for c in str(error))[:200]
        return UserError(f"{self.path!r} of stage {self.stage!r} is not {what} ({said}); look at its bytes().")

    def __repr__(self) -> str:
        return f"<OutputFile {self.stage}/{self.path} · {self.size:,} bytes>"
