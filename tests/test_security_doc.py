"""docs/security.md names a test for each statement; the tests that it names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "security.md"
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return {name for name in found if name.startswith(("test_", "check_"))}


def test_every_named_test_is_there() -> None:
    """A statement must not outlive its test."""
    named = _NAMED.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(named) > 20
    gone = [f"{path}::{test}" for path, test in named if test not in _tests(ROOT / path)]
    assert not gone


def test_every_statement_names_one() -> None:
    """Each row of the tables under "What is enforced" ends with a test."""
    text = DOCUMENT.read_text(encoding="utf-8")
    enforced = text.split("## What is enforced", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in enforced.splitlines() if line.startswith("|") and not re.match(r"\|[-: |]+\|$", line)]
    rows = [row for row in rows if not row.startswith("| what ")]
    assert rows
    assert [row for row in rows if not _NAMED.search(row)] == []
