"""``voidbox image`` in this process: the layers of packages beforehand, and what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.images.small import Shelf, shelf, small_image
from voidbox_lab import images
from voidbox_lab.cli.app import run
from voidbox_lab.images.build import publish
from voidbox_lab.images.store import Store
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Rootfs


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of the command."""
    monkeypatch.setenv("VOIDBOX_HOME", str(tmp_path))
    monkeypatch.delenv("VOIDBOX_CACHE", raising=False)
    return Settings.from_env()


@pytest.fixture
def there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A default image, and packages for it."""
    small_image(settings)
    return shelf(settings, monkeypatch)


def test_the_layer_of_a_package_is_made_beforehand(
    settings: Settings, there: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a box will get it; its pin is renewed when asked."""
    assert run(["image", "build", "--package", "deb:nc", "--package", "deb:jq", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in made["layers"]][-2:] == ["deb:jq", "deb:nc"]
    assert images.compose(settings, Rootfs(packages=("deb:jq", "deb:nc"))).digest == made["digest"]
    assert there.planned == ["deb:jq", "deb:nc"]
    there.newest = "2"
    assert run(["image", "build", "--package", "deb:jq"]) == 0
    assert there.planned == ["deb:jq", "deb:nc"]
    assert run(["image", "build", "--package", "deb:jq", "--refresh"]) == 0
    assert there.planned == ["deb:jq", "deb:nc", "deb:jq"]
    assert " ready in " in capsys.readouterr().out
    assert images.compose(settings, Rootfs(packages=("deb:jq", "deb:nc"))).digest != made["digest"]


def test_the_image_below_is_built_if_it_is_not_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the versions that are pinned: it is the package's that are asked for anew."""
    built: list[bool] = []

    def build(settings: Settings, name: str, _report: images.Report, *, refresh: bool = False) -> None:
        built.append(refresh)
        small_image(settings, name=name)
        shelf(settings, monkeypatch)

    monkeypatch.setattr(images, "build", build)
    assert run(["image", "build", "--package", "deb:jq", "--refresh"]) == 0
    assert built == [False]


@pytest.mark.parametrize("ref", ["jq", "deb:", "deb:../x", "rpm:jq", "npm:a/b/c"])
def test_what_is_no_package_is_said_first(
    settings: Settings, capsys: pytest.CaptureFixture[str], ref: str
) -> None:
    """Before anything is built."""
    assert run(["image", "build", "--package", ref]) == 2
    assert "is not a package; write deb:NAME" in capsys.readouterr().err
    assert not (settings.cache / "images").exists()


def test_the_list_says_what_each_is(settings: Settings, there: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    """An agent's image is no more distribution packages than one of somebody else's."""
    base = images.resolve(settings)
    manifest = images.read_manifest(settings, base)
    layer = manifest["layers"][0] | {"name": "claude-code", "version": "2.1.0", "licence": "Theirs."}
    added = {"layers": [*manifest["layers"], layer], "from": {"name": "default", "digest": base.digest}}
    publish(Store(settings.cache), "default+claude-code", manifest | added)
    assert run(["image", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "replaced" not in line}
    assert lines["default"].endswith("  distribution packages")
    assert lines["default+claude-code"].endswith("  agent claude-code 2.1.0")
    assert "packages" not in lines["default+claude-code"]


def test_prune_all_takes_fetched_skills_too(
    settings: Settings, there: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are downloads; without ``--all`` they stay."""
    skill = settings.cache / "skills" / ("a" * 64) / "fx" / "SKILL.md"
    skill.parent.mkdir(parents=True)
    skill.write_text("Use it.\n" * 1000)
    assert run(["image", "prune"]) == 0
    assert skill.exists()
    capsys.readouterr()
    assert run(["image", "prune", "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed"] >= 8000
    assert not skill.parent.parent.parent.exists()
