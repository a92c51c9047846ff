"""``voidbox volume`` as a user calls it, and ``--volume``; with a box at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_templates_vm import env, voidbox
from voidbox_lab.cli.app import run

__all__ = ["env"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own."""
    monkeypatch.setenv("VOIDBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """The JSON that a command prints."""
    assert run([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_create_list_inspect_and_remove(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As text for people, and the same as JSON."""
    assert shown(capsys, "volume", "list") == []
    assert run(["volume", "list"]) == 0
    assert "voidbox volume create" in capsys.readouterr().out
    made = shown(capsys, "volume", "create", "cache", "--size", "64M")
    assert (made["name"], made["size_mb"], made["users"]) == ("cache", 64, [])
    assert made["path"] == str(home / "data" / "volumes" / "cache")
    assert shown(capsys, "volume", "create", "big", "--size", "1g")["size_mb"] == 1024
    assert [volume["name"] for volume in shown(capsys, "volume", "list")] == ["big", "cache"]
    assert shown(capsys, "volume", "inspect", "cache") == made
    assert run(["volume", "inspect", "cache"]) == run(["volume", "list"]) == 0
    text = capsys.readouterr().out
    assert "64.0 MB" in text
    assert "free" in text
    assert shown(capsys, "volume", "rm", "cache", "big") == {"removed": ["cache", "big"]}
    assert shown(capsys, "volume", "list") == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["volume", "create", "Cache"], "is not a name"),
        (["volume", "create", "c", "--size", "many"], "--size"),
        (["volume", "create", "c", "--size", "1"], "16 to"),
        (["volume", "inspect", "nix"], "voidbox volume create nix"),
        (["volume", "rm", "nix"], "voidbox volume create nix"),
        (["exec", "--volume", "cache", "--", "true"], "VOLUME:PATH"),
        (["exec", "--volume", "cache:/usr/x", "--", "true"], "--volume: '/usr/x' belongs to"),
        (["exec", "--volume", "a:/x", "--volume", "a:/y", "--", "true"], "named twice"),
    ],
)
def test_what_cannot_be_is_a_user_error(
    home: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    """One sentence, exit code 2, and no daemon is started for it."""
    assert run(argv) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert not (home / "data" / "volumes" / "c").exists()


@pytest.mark.vm
def test_a_volume_between_two_commands(env: dict[str, str]) -> None:
    """Through the daemon: written, read, refused while in use, gone."""
    made = voidbox(env, "volume", "create", "cache", "--size", "32M")
    assert made.returncode == 0, made.stderr
    try:
        wrote = voidbox(
            env, "exec", "--memory", "192", "--volume", "cache:/data", "--", "sh", "-c", "echo x > /data/f"
        )
        assert wrote.returncode == 0, wrote.stderr
        read = voidbox(env, "exec", "--memory", "192", "--volume", "cache:/data:ro", "--", "cat", "/data/f")
        assert (read.returncode, read.stdout) == (0, "x\n"), read.stderr
        missing = voidbox(env, "exec", "--memory", "192", "--volume", "nix:/data", "--", "true")
        assert (missing.returncode, "voidbox volume create nix" in missing.stderr) == (125, True), missing.stderr
        assert voidbox(env, "volume", "rm", "cache").returncode == 0
    finally:
        voidbox(env, "daemon", "stop")
