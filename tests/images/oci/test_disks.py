"""A box has so many disks, and all that its skills need fits on them or is refused."""

from __future__ import annotations

import pytest

from tests.images.oci.maker import Layer, Registry, entry
from tests.images.small import shelf
from voidbox_lab.images import compose, prune, read_manifest, resolve
from voidbox_lab.images.build import MAX_DISKS
from voidbox_lab.settings import Settings
from voidbox_lab.spec import OciMount, Rootfs


@pytest.mark.parametrize("mounts", [1, 3])
def test_packages_leave_disks_for_skills_that_are_images(
    hub: Registry, based: Settings, monkeypatch: pytest.MonkeyPatch, mounts: int
) -> None:
    """However many there are of them; the same packages without these skills have a layer each."""
    shelf(based, monkeypatch)
    hub.push("data:1", [Layer([entry("a", b"1")])])
    packages = tuple(f"deb:p{n:02}" for n in range(17))
    where = tuple(OciMount(image=f"{hub.address}/data:1", path=f"/skills/d{n}") for n in range(mounts))
    alone = compose(based, Rootfs(packages=packages))
    image = compose(based, Rootfs(packages=packages, oci=where))
    manifest = read_manifest(based, image)
    assert len(image.layers) == MAX_DISKS
    assert len(manifest["mounts"]) == mounts
    found = [f["name"] for d in manifest["layers"] for part in d.get("packages", ()) for f in part["files"]]
    assert sorted(found) == [f"p{n:02}" for n in range(17)]
    # Neither replaces what the other stands on, so that both stay when what is not current is pruned.
    prune(based)
    assert resolve(based, alone.name) == alone
    assert compose(based, Rootfs(packages=packages, oci=where)) == image
    prune(based)
    assert (resolve(based, alone.name), resolve(based, image.name)) == (alone, image)
