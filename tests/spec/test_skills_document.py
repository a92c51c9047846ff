"""docs/skills.md, taken at its word: its files are valid, its calls work, its cells declare."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from voidbox_lab import Policy, Skill
from voidbox_lab.spec.files.check import checked
from voidbox_lab.spec.files.source import parse
from voidbox_lab.spec.remote import parse_remote

TEXT = (Path(__file__).parents[2] / "docs" / "skills.md").read_text(encoding="utf-8")
YAML = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
CALLS = [
    ast.unparse(call)
    for block in PYTHON
    for call in ast.walk(ast.parse(block))
    if isinstance(call, ast.Call) and re.match(r"(Skill\.(?!file|remote)|Policy\.)", ast.unparse(call.func))
]
HEAD = "kind: agent\nversion: 1\nname: a\nprompt: p\nmodel: scripted:echo\n"


@pytest.mark.parametrize("block", YAML)
def test_its_files_are_well_formed(block: str) -> None:
    """As fields of an agent; files that they name are not looked at."""
    assert isinstance(yaml.safe_load(block), dict)
    file, problems = checked(parse(Path("f.yaml"), HEAD + block), None)
    assert file is not None, [str(p) for p in problems]


@pytest.mark.parametrize("call", CALLS)
def test_its_calls_work(call: str) -> None:
    """Those that need neither a file nor a network."""
    assert eval(call, {"Skill": Skill, "Policy": Policy}).digest


@pytest.mark.parametrize("where", re.findall(r"Skill\.remote\(\"(.*?)\"|--remote (\S+)", TEXT))
def test_its_references_are_some(where: tuple[str, str]) -> None:
    """As they are taken apart before anything is fetched."""
    assert parse_remote("".join(where)).source
