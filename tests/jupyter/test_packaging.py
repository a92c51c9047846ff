"""What ``pip install`` of the wheel brings to JupyterLab, and what the extension is made from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "labextension"
DATA = "voidbox_lab-0.1.0.data/data/"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a wheel made of this checkout, where pip puts them below an environment's prefix."""
    where = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(where)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = where.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(where, [n for n in archive.namelist() if n.startswith(DATA)])
    return where / DATA


def ask(installed: Path, *command: str) -> str:
    env = os.environ | {
        "JUPYTER_PATH": str(installed / "share" / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(installed / "etc" / "jupyter"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", *command], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout + done.stderr


def test_jupyterlab_finds_the_panel(installed: Path) -> None:
    listed = ask(installed, "jupyter", "labextension", "list")
    assert str(installed / "share" / "jupyter" / "labextensions") in listed
    plain = re.sub(r"\x1b\[[0-9;]*m", "", listed)
    assert re.search(r"voidbox-lab v0\.1\.0 enabled OK \(python, voidbox-lab\)", plain), plain


def test_the_server_loads_its_extension(installed: Path) -> None:
    listed = ask(installed, "jupyter", "server", "extension", "list")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", listed)
    assert re.search(r"voidbox_lab\.jupyter enabled\s+- Validating voidbox_lab\.jupyter\.+\s+.*OK", plain), plain


def test_the_panel_brings_all_that_it_needs(installed: Path) -> None:
    """Its entry, its settings, and no address of anybody in its code that it could fetch from."""
    extension = installed / "share" / "jupyter" / "labextensions" / "voidbox-lab"
    about = json.loads((extension / "package.json").read_text())
    assert (extension / about["jupyterlab"]["_build"]["load"]).is_file()
    assert (extension / "schemas" / "voidbox-lab" / "panel.json").is_file()
    code = "".join(f.read_text() for f in (extension / "static").glob("*.js"))
    found = set(re.findall(r"https?://[\w.-]+", code))
    assert found <= {"http://www.w3.org"}, "names of XML vocabularies alone"


def test_the_lock_names_no_host() -> None:
    """Whoever installs takes packages from the registry of their own choice; what they are, checksums say."""
    lock = (SOURCES / "yarn.lock").read_text()
    assert "://" not in lock
    assert "__archiveUrl" not in lock
    assert lock.count("checksum: ") >= lock.count("@npm:") / 3


def test_the_generated_types_know_every_field() -> None:
    """A quick look; `scripts/test-ui` generates them anew and compares."""
    types = (SOURCES / "src" / "openapi.ts").read_text()
    schemas = json.loads((ROOT / "docs" / "openapi.json").read_text())["components"]["schemas"]
    for name, schema in schemas.items():
        body = re.search(rf"^        {name}: (.*?)^        \S", types, re.MULTILINE | re.DOTALL)
        assert body or f"        {name}: " in types, f"run scripts/labextension --types: there is no {name}"
        for field in schema.get("properties", {}) if body else ():
            said = re.search(rf'^\s+"?{re.escape(field)}"?\??: ', body[0], re.MULTILINE)
            assert said, f"run scripts/labextension --types: {name} has no {field}"


def test_what_a_page_says_is_never_markup() -> None:
    """React and textContent escape; these are the ways around them."""
    for file in (SOURCES / "src").glob("*.ts*"):
        text = file.read_text()
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert way not in text, f"{file.name} has {way}"


def test_the_name_of_the_output_type_is_the_widgets() -> None:
    from voidbox_lab.widgets.display import RUN_MIME

    assert f"'{RUN_MIME}'" in (SOURCES / "src" / "mime.tsx").read_text()
