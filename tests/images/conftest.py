"""Fixtures of the image room: a cache of the test's own, and small images in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab.images import Image
from voidbox_lab.images.build import publish
from voidbox_lab.images.store import BlobKind, Store
from voidbox_lab.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Everything below the test's own directory."""
    return Settings(
        cache=tmp_path / "cache", data=tmp_path / "data", runtime=tmp_path / "run", shm=tmp_path / "shm"
    )


def _blob(store: Store, kind: BlobKind, text: str) -> dict[str, Any]:
    """A stored file with `text` in it."""
    return dataclasses.asdict(store.step(text, kind, lambda target: target.write_text(text) and None))


def _make(settings: Settings, label: str = "one", name: str = "default") -> Image:
    """A published image whose kernel and guest layer are its own; the rest is the same for all."""
    store = Store(settings.cache)
    manifest = {
        "version": 2,
        "kernel": _blob(store, "kernels", f"kernel {label}"),
        "kernel_release": "6.1.0-test",
        "initrd": _blob(store, "initrds", "initrd"),
        "modules": _blob(store, "modules", "modules"),
        "scratch": _blob(store, "scratch", "scratch"),
        "layers": [
            _blob(store, "layers", "distribution") | {"name": "distribution"},
            _blob(store, "layers", f"guest {label}") | {"name": "guest"},
        ],
        "arguments": ["console=ttyS0", "quiet"],
        "packages": {},
    }
    return publish(store, name, manifest)


@pytest.fixture
def make_image() -> Callable[..., Image]:
    """``make_image(settings, label="one", name="default")`` publishes an image of a few bytes."""
    return _make
