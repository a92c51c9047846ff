"""Images of a few bytes, and packages that need no network: there is what a test says there is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from voidbox_lab.images import Image
from voidbox_lab.images.apt import Package
from voidbox_lab.images.build import publish, read_manifest, resolve
from voidbox_lab.images.layers import stack
from voidbox_lab.images.layers.base import Base, Work
from voidbox_lab.images.layers.reference import Reference
from voidbox_lab.images.store import BlobKind, Store
from voidbox_lab.images.unpack import Tree, make_directory
from voidbox_lab.settings import Settings

PYTHON = Package("python3.11-minimal", "3.11.2", "amd64", "a" * 64, 1)


def _blob(store: Store, kind: BlobKind, text: str) -> dict[str, Any]:
    """A stored file with `text` in it."""
    return dataclasses.asdict(store.step(text, kind, lambda target: target.write_text(text) and None))


def small_image(settings: Settings, label: str = "one", name: str = "default") -> Image:
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


class Shelf:
    """What ``deb:`` means in a test: every package, in the version of `newest`."""

    HOW: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.newest = "1"
        self.planned: list[str] = []

    def key(self, _base: Base, _reference: Reference) -> Any:
        """Nothing of the image matters."""

    def plan(self, _work: Work, reference: Reference) -> dict[str, Any]:
        """The newest."""
        self.planned.append(str(reference))
        return {"name": reference.name, "version": self.newest}

    def files(self, lock: dict[str, Any]) -> list[dict[str, Any]]:
        """One."""
        return [lock]

    def inputs(self, _base: Base, lock: dict[str, Any]) -> Any:
        """All of it."""
        return lock

    def fill(self, _work: Work, lock: dict[str, Any], tree: Tree) -> None:
        """A program that says its version."""
        path = tree.place(f"usr/bin/{lock['name']}")
        make_directory(path.parent)
        path.write_text(lock["version"])


def shelf(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """One for ``deb:``, and the default image made fit for packages."""
    made = Shelf()
    monkeypatch.setitem(stack._KINDS, "deb", made)
    manifest = read_manifest(settings, resolve(settings))
    publish(Store(settings.cache), "default", manifest | {"packages": {"packages": [PYTHON.to_dict()]}})
    return made
