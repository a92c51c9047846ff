"""A registry for all tests of the room, and a default image that needs no build."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images.oci.maker import Registry, registry
from voidbox_lab.images.oci import runtime
from voidbox_lab.images.store import Store
from voidbox_lab.settings import Settings


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that asks nobody who they are."""
    with registry(tmp_path_factory.mktemp("hub") / "registry") as made:
        yield made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Everything below the test's own directory."""
    return Settings(
        cache=tmp_path / "cache", data=tmp_path / "data", runtime=tmp_path / "run", shm=tmp_path / "shm"
    )


@pytest.fixture
def based(settings: Settings, make_image: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """`settings` with a default image of a few bytes, and a runtime layer as small: that one is for real boxes."""
    make_image(settings)
    store = Store(settings.cache)
    monkeypatch.setattr(runtime, "inputs", lambda base: {"runtime": "of a test"})
    monkeypatch.setattr(
        runtime,
        "runtime_layer",
        lambda *_: store.step({"runtime": "of a test"}, "layers", lambda target: target.write_text("rt") and None),
    )
    return settings


@pytest.fixture
def seen() -> Callable[[Path], dict[str, str]]:
    """``seen(layer)``: path to what unsquashfs says of it: type, mode, owner, size or device, and link."""

    def look(layer: Path) -> dict[str, str]:
        done = subprocess.run(
            ["unsquashfs", "-UTC", "-lln", layer],
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
        found = {}
        for line in done.stdout.splitlines():
            about, _, rest = line.partition("squashfs-root")
            path, arrow, link = rest.lstrip("/").partition(" -> ")
            found[path] = " ".join(about.split()[:-2]) + (f" -> {link}" if arrow else "")
        return found

    return look


@pytest.fixture
def record() -> Callable[[Settings], dict[str, dict[str, str]]]:
    """``record(settings)``: what is remembered of each reference."""

    def read(settings: Settings) -> dict[str, dict[str, str]]:
        found = [json.loads(p.read_bytes()) for p in (settings.cache / "oci" / "references").glob("*.json")]
        return {r["reference"]: r for r in found}

    return read
