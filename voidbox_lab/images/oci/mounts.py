"""OCI images as skills: the whole file system of each as one disk, read-only at a place in the box."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from voidbox_lab.errors import Unavailable
from voidbox_lab.images import recipe as recipes
from voidbox_lab.images.build import publish, read_manifest, resolve
from voidbox_lab.images.model import Image, Progress, Report, silent
from voidbox_lab.images.oci import box, layers, root
from voidbox_lab.images.oci.cache import OciCache, Pulled
from voidbox_lab.images.oci.reference import Reference
from voidbox_lab.images.store import Blob, Store
from voidbox_lab.settings import Settings
from voidbox_lab.spec import OciMount
from voidbox_lab.spec.digest import digest_json


def with_mounts(
    settings: Settings, image: Image, mounts: Sequence[OciMount], progress: Report | None = None
) -> Image:
    """`image` with the file systems of `mounts` at their places. Blocking and raising as `root.as_root`."""
    report = progress or silent
    wanted = sorted(((m.path, Reference.parse(m.image)) for m in mounts), key=lambda pair: pair[0])
    if not wanted:
        return image
    store = Store(settings.cache)
    cache = OciCache(settings, recipes.load("default").image.architecture)
    base = read_manifest(settings, image)
    key = digest_json([[path, str(reference)] for path, reference in wanted])[7:19]
    name = f"{image.name}+m{key}"
    below = {"name": image.name, "digest": image.digest}
    said = box.facts(base.get("oci"), [path for path, _ in wanted])

    def manifest(pulled: list[Pulled], blobs: list[Blob]) -> dict[str, Any]:
        disks = [
            asdict(blob)
            | {"name": f"mount {path}", "path": path, "reference": str(one.reference), "digest_of": one.digest}
            for (path, _), one, blob in zip(wanted, pulled, blobs, strict=True)
        ]
        kept = [d for d in base["layers"] if d["name"] != box.LAYER]
        return base | {"layers": [*kept, box.layer(store, said)], "mounts": disks, "from": below}

    known = [cache.find(reference) for _, reference in wanted]
    there = [p and layers.made(store, p.config.rootfs.diff_ids, flat=True) for p in known]
    # What is there already must not wait for somebody else's build.
    if all(there) and store.made(box.inputs(said), "layers") is not None:
        with contextlib.suppress(Unavailable):
            found = resolve(settings, name)
            if found.digest == digest_json(manifest([p for p in known if p], [b for b in there if b])):
                return found
    with store.lock():
        pulled, blobs = [], []
        for _, reference in wanted:
            one = cache.find(reference)
            if one is None:
                report(Progress("resolve", f"Asking for {reference}"))
                one = cache.pull(reference)
            pulled.append(one)
            blobs += root.made(store, cache, one, [(True, list(one.config.rootfs.diff_ids))], report)
        return publish(store, name, manifest(pulled, blobs))
