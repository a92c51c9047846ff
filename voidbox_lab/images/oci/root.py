"""An image for boxes out of an OCI image: its layers, our agent on top, the default image's kernel."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

from voidbox_lab.errors import Unavailable, UserError
from voidbox_lab.images import recipe as recipes
from voidbox_lab.images.build import MAX_DISKS, publish, read_manifest, resolve
from voidbox_lab.images.model import Image, Progress, Report, silent
from voidbox_lab.images.oci import box, layers, runtime
from voidbox_lab.images.oci.archive import Allowance, Source
from voidbox_lab.images.oci.cache import OciCache, Pulled
from voidbox_lab.images.oci.reference import Reference
from voidbox_lab.images.store import Blob, Store
from voidbox_lab.settings import Settings
from voidbox_lab.spec.digest import digest_json

MOST = 12
"""Layers of an image that are disks of their own, so that images share them; more are squashed from below."""
_OURS = 2


def as_root(
    settings: Settings, reference: str, progress: Report | None = None, *, others: int = 0, renew: bool = False
) -> Image:
    """The OCI image `reference` as the root of boxes; pulled the first time, and from then on without a network.

    Blocking: quick once it is there, else as long as downloads take.

    Args:
        others: disks that are to be added to it: an agent's layer, packages, mounts.
        renew: ask the registry what the tag is now.

    Raises:
        UserError: there is no such image, none for this platform, or none that a box could use.
        Unavailable: the default image was never built; a tool is missing; the registry refuses or does
            not answer.
        ProviderError: what came is damaged, unsafe, or not what its digest says.
        LimitExceeded: it is too large, or something took too long.
    """
    report = progress or silent
    parsed = Reference.parse(reference)
    base = read_manifest(settings, resolve(settings))
    store = Store(settings.cache)
    cache = OciCache(settings, recipes.load("default").image.architecture)
    most = min(MOST, MAX_DISKS - _OURS - others)
    if most < 1:
        raise UserError(f"A box has room for {MAX_DISKS} disks, too few for this; use fewer images as skills.")
    name = parsed.image_name if most == MOST else f"{parsed.image_name}.{most}"
    pulled = None if renew else cache.find(parsed)
    # What is there already must not wait for somebody else's build.
    if pulled is not None and (manifest := _there(store, base, pulled, most)) is not None:
        with contextlib.suppress(Unavailable):
            image = resolve(settings, name)
            if image.digest == digest_json(manifest):
                return image
    with store.lock():
        if pulled is None and (renew or (pulled := cache.find(parsed)) is None):
            report(Progress("resolve", f"Asking for {parsed}"))
            pulled = cache.pull(parsed)
        manifest = _manifest(
            base, pulled, made(store, cache, pulled, _groups(pulled, most), report),
            runtime.runtime_layer(store, base, report), box.layer(store, box.facts(_facts(pulled), ())),
        )  # fmt: skip
        return publish(store, name, manifest)


def pull(settings: Settings, reference: str, progress: Report | None = None) -> Image:
    """`as_root` with whatever the registry has under `reference` now, which later boxes get from then on."""
    return as_root(settings, reference, progress, renew=True)


def made(
    store: Store, cache: OciCache, pulled: Pulled, groups: list[tuple[bool, list[str]]], report: Report
) -> list[Blob]:
    """The squashfs of each of `groups` (flat or not, diff ids), fetched and made where it lacks."""
    found = [layers.made(store, ids, flat=flat) for flat, ids in groups]
    if None in found:
        size = sum(layer.size for layer in pulled.manifest.layers)
        report(Progress("download", f"Fetching {pulled.reference} ({size / 1e6:.0f} MB)"))
        paths = dict(zip(pulled.config.rootfs.diff_ids, cache.layers(pulled), strict=True))
        allowance = Allowance()
        for place, (flat, ids) in enumerate(groups):
            sources = [Source(paths[diff_id], diff_id) for diff_id in ids]
            what = f"layer {place + 1} of {len(groups)} of {pulled.reference}"
            found[place] = layers.make(store, sources, flat=flat, allowance=allowance, report=report, what=what)
    return [blob for blob in found if blob is not None]


def _groups(pulled: Pulled, most: int) -> list[tuple[bool, list[str]]]:
    ids = list(pulled.config.rootfs.diff_ids)
    lower = len(ids) - most + 1 if len(ids) > most else 0
    return [(True, ids[:lower])] * bool(lower) + [(False, [diff_id]) for diff_id in ids[lower:]]


def _facts(pulled: Pulled) -> dict[str, Any]:
    return {
        "reference": str(pulled.reference),
        "digest": pulled.digest,
        "manifest": pulled.manifest_digest,
        "env": pulled.config.config.environment,
        "working_dir": pulled.config.config.working_dir,
    }


def _there(store: Store, base: dict[str, Any], pulled: Pulled, most: int) -> dict[str, Any] | None:
    """The manifest, if everything in it is there; nothing is made."""
    said = box.facts(_facts(pulled), ())
    own, small = store.made(runtime.inputs(base), "layers"), store.made(box.inputs(said), "layers")
    found = [layers.made(store, ids, flat=flat) for flat, ids in _groups(pulled, most)]
    if own is None or small is None or None in found:
        return None
    return _manifest(base, pulled, [b for b in found if b], own, box.layer(store, said))


def _manifest(
    base: dict[str, Any], pulled: Pulled, found: list[Blob], own: Blob, small: dict[str, Any]
) -> dict[str, Any]:
    named = [asdict(blob) | {"name": f"oci-{place}"} for place, blob in enumerate(found)]
    layers = [*named, asdict(own) | {"name": "runtime"}, small]
    below = {"name": "default", "digest": digest_json(base)}
    return base | {"layers": layers, "oci": _facts(pulled), "from": below}
