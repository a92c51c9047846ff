"""What is wrong with a spec file, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from voidbox_lab.errors import UserError

MAX_PROBLEMS = 20
"""As many are told of one file; whoever mended those sees the rest."""
Loc = tuple[str | int, ...]
"""The way to a value: keys of mappings, indices of lists from 0."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong. Lines and columns count from 1, columns in characters."""

    line: int
    column: int
    field: str
    """``stages.analyst.memory``; empty for the file as a whole."""
    message: str

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: " + (f"{self.field}: " if self.field else "") + self.message


class SpecFileError(UserError):
    """A spec file that cannot be run as it stands, with all that is wrong with it."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        found = sorted(set(problems))
        self.path = path
        self.problems = found[:MAX_PROBLEMS]
        self.more = len(found) - len(self.problems)
        """How many there are besides."""
        super().__init__("\n".join([f"The spec file {path} is not valid:", *self.lines]), cause="spec-file")

    @property
    def lines(self) -> list[str]:
        """A line each, as compilers write them: ``FILE:LINE:COLUMN: FIELD: MESSAGE``."""
        more = [f"{self.path}: … and {self.more} more"] if self.more else []
        return [f"{self.path}:{problem}" for problem in self.problems] + more


def dotted(loc: Sequence[str | int]) -> str:
    """``stages.analyst.skills.1``."""
    return ".".join(str(part) for part in loc)


def near(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or the known ones where none is near, to be put after a statement."""
    names = list(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if found:
        return f"; did you mean {found[0]!r}?"
    shown = ", ".join(names[:24]) + (", …" if len(names) > 24 else "")
    return f"; there are {shown}" if names else "; there are none"
