"""What holds for every subcommand: documented, with JSON, quick to import."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from voidbox_lab.cli.app import app, run

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
HEAVY = (
    "voidbox_lab.images",
    "voidbox_lab.machines",
    "voidbox_lab.daemon",
    "fastapi",
    "nbformat",
    "pandas",
    "panel",
    "bokeh",
    "IPython",
)
"""What no subcommand needs before it is called."""


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every subcommand by its words, groups that do something by themselves included."""
    under = getattr(command, "commands", None)
    if under is None or (path and command.invoke_without_command):
        yield " ".join(path), command
    for name, below in (under or {}).items():
        yield from leaves(below, (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))


def options(command: Any) -> list[str]:
    """The names of all options that help shows."""
    shown = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    return [name for option in shown for name in (*option.opts, *option.secondary_opts)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    """Under a heading of its own, with an example, all its options, and what help says first."""
    found = re.search(rf"^### `voidbox {name}`\n(.*?)(?=^##|\Z)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section on voidbox {name}"
    text = found[1]
    assert re.search(rf"^```\n.*\bvoidbox {name}\b.*\n```$", text, re.MULTILINE), f"no example of voidbox {name}"
    missing = [option for option in options(COMMANDS[name]) if f"`{option}`" not in text]
    assert not missing, f"docs/cli.md says nothing of voidbox {name} {missing}"
    described = set(re.findall(r"^- `(--?[a-z-]+)`|, `(--?[a-z-]+)`(?=[,:])", text, re.MULTILINE))
    surplus = {a or b for a, b in described} - set(options(COMMANDS[name]))
    assert not surplus, f"docs/cli.md says of voidbox {name} what it has not: {surplus}"


def test_no_section_is_about_nothing() -> None:
    """Each heading is a command that there is."""
    assert set(re.findall(r"^### `voidbox (.*)`$", DOCS.read_text(), re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "shell"])
def test_every_command_has_json(name: str) -> None:
    """But a shell, which is refused with a sentence (`test_shell`)."""
    assert "--json" in options(COMMANDS[name])


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the documentation's table."""
    assert run(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for code in (
        "0 success",
        "1 an agent",
        "2 what",
        "3 the host",
        "4 a limit",
        "130 cancelled",
        "128 + N",
        "124",
    ):
        assert code in said


def test_help_imports_little() -> None:
    """It took 0.1 s less on the machine it was written on than with images and machines imported."""
    code = f"import sys, voidbox_lab.cli.app; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
