"""``voidbox template`` and ``voidbox bench`` as a user calls them, with real guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voidbox_lab import images
from voidbox_lab.settings import Settings

pytestmark = pytest.mark.vm

BOUND_S = 240


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home whose cache shares the image and nothing else, so that templates are its own."""
    images.resolve(settings := Settings.from_env())
    home = tmp_path_factory.mktemp("home")
    cache = home / "cache"
    cache.mkdir()
    for entry in settings.cache.iterdir():
        if entry.name not in {"templates", "boxes"}:
            (cache / entry.name).symlink_to(entry)
    return {**os.environ, "VOIDBOX_HOME": str(home)} | {"VOIDBOX_CACHE": str(cache)}


def voidbox(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    command = [sys.executable, "-m", "voidbox_lab.cli", *argv]
    return subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BOUND_S, check=False
    )


def test_build_list_and_prune(env: dict[str, str]) -> None:
    """Made once, found again, removed; and nothing of it is left in memory."""
    assert json.loads(voidbox(env, "template", "list", "--json").stdout) == []
    built = voidbox(env, "template", "build", "--memory", "192", "--json")
    assert built.returncode == 0, built.stderr
    made = json.loads(built.stdout)
    assert made["key"]["memory_mb"] == 192
    again = json.loads(voidbox(env, "template", "build", "--memory", "192", "--json").stdout)
    assert (again["digest"], again["made"]) == (made["digest"], made["made"])
    listed = json.loads(voidbox(env, "template", "list", "--json").stdout)
    assert [template["digest"] for template in listed] == [made["digest"]]
    assert made["digest"][:12] in voidbox(env, "template", "list").stdout
    removed = json.loads(voidbox(env, "template", "prune", "--all", "--json").stdout)
    assert removed == {"removed": [made["digest"]]}
    assert json.loads(voidbox(env, "template", "list", "--json").stdout) == []


def test_a_benchmark_has_its_floor(env: dict[str, str], tmp_path: Path) -> None:
    """`bench exec` in a real box: samples of subject and floor, printed and saved alike. No time is judged."""
    target = tmp_path / "exec.json"
    done = voidbox(env, "bench", "exec", "--effort", "0.05", "--save", str(target), "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data == json.loads(target.read_text())
    names = [figure["subject"]["name"] for figure in data["figures"]]
    assert names == ["exec of true", "exec of true", "empty request"]
    for figure in data["figures"]:
        assert all(sample > 0 for of in ("subject", "floor") for sample in figure[of]["samples"])


def test_wrong_words(env: dict[str, str]) -> None:
    """One sentence each, exit code 2, and nothing is started."""
    for argv in (["bench", "speed"], ["bench", "--effort", "0"], ["template", "prune", "--keep-mb", "-1"]):
        done = voidbox(env, *argv)
        assert done.returncode == 2, argv
        assert "Traceback" not in done.stderr
