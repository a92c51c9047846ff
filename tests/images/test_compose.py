"""Packages on an image: pinned, planned anew when asked, and packed into the disks that are left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.images.small import shelf
from voidbox_lab.images import Image, compose, read_manifest
from voidbox_lab.images.build import MAX_DISKS
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Rootfs

MakeImage = Callable[..., Image]


def versions(settings: Settings, image: Image) -> dict[str, str]:
    """Package to version, of all that was added."""
    layers = [d for d in read_manifest(settings, image)["layers"] if "packages" in d]
    return {f["name"]: f["version"] for d in layers for part in d["packages"] for f in part["files"]}


def test_pins_stay_until_they_are_planned_anew(
    settings: Settings, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is planned anew for one image is what others get from then on."""
    make_image(settings)
    there = shelf(settings, monkeypatch)
    first = compose(settings, Rootfs(packages=("deb:jq",)))
    there.newest = "2"
    assert compose(settings, Rootfs(packages=("deb:jq",))) == first
    assert versions(settings, first) == {"jq": "1"}
    assert there.planned == ["deb:jq"]
    renewed = compose(settings, Rootfs(packages=("deb:jq",)), refresh=True)
    assert (renewed.name, versions(settings, renewed)) == (first.name, {"jq": "2"})
    both = compose(settings, Rootfs(packages=("deb:jq", "deb:nc")))
    assert versions(settings, both) == {"jq": "2", "nc": "2"}
    assert {layer.digest for layer in renewed.layers} < {layer.digest for layer in both.layers}


def test_more_packages_than_disks(
    settings: Settings, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last ones share a layer."""
    make_image(settings)
    shelf(settings, monkeypatch)
    names = tuple(f"p{n:02}" for n in range(30))
    image = compose(settings, Rootfs(packages=tuple(f"deb:{name}" for name in names)))
    assert len(image.layers) == MAX_DISKS
    assert sorted(versions(settings, image)) == list(names)
