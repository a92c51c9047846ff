"""What an image is made of, in words and as data. Not for making one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from voidbox_lab.errors import UserError
from voidbox_lab.images.build import list_images, read_manifest
from voidbox_lab.images.model import Image
from voidbox_lab.images.oci.reference import Reference
from voidbox_lab.settings import Settings


def find(settings: Settings, text: str) -> Image:
    """The image of which `text` is the name, or the beginning of the digest, with or without ``sha256:``, or the
    reference as which it was pulled.

    Raises:
        UserError: there is none, or more than one.
    """
    found = list_images(settings)
    named = [image for image in found if image.name == text and is_current(settings, image)]
    begin = text.removeprefix("sha256:")
    matching = named or [
        i for i in found if len(begin) >= 6 and i.digest.removeprefix("sha256:").startswith(begin)
    ]
    matching = matching or _pulled(settings, found, text)
    if len({image.digest for image in matching}) != 1:
        known = ", ".join(sorted({image.name for image in found})[:8]) or "none; run `voidbox image build`"
        what = (
            "fits more than one image; give more of the digest" if matching else f"is no image (there are {known})"
        )
        raise UserError(f"{text[:100]!r} {what}.", cause="image-unknown")
    return matching[0]


def _pulled(settings: Settings, found: list[Image], text: str) -> list[Image]:
    """The current image made of the OCI reference `text`, with nothing added to it, if there is one."""
    try:
        reference = str(Reference.parse(text))
    except UserError:
        return []
    made = [
        image
        for image in found
        if is_current(settings, image)
        and (read_manifest(settings, image).get("oci") or {}).get("reference") == reference
    ]
    return sorted(made, key=lambda image: len(image.name))[:1]


def is_current(settings: Settings, image: Image) -> bool:
    """Whether boxes of its name get this one."""
    with contextlib.suppress(OSError):
        return f"sha256:{_current(settings, image).read_text(encoding='ascii').strip()}" == image.digest
    return False


def describe(settings: Settings, image: Image) -> dict[str, Any]:
    """`image` as JSON: ``name, digest, kind, what, kernel_release, current, last_used`` (UNIX time or None),
    ``layers`` (bottom to top, with the exact packages and licences, where known) and ``mounts``."""
    manifest = read_manifest(settings, image)
    kind = "oci" if "oci" in manifest else "packages"
    return {
        "name": image.name,
        "digest": image.digest,
        "kind": kind,
        "what": _what(manifest),
        "kernel_release": image.kernel_release,
        "current": is_current(settings, image),
        "last_used": _last_used(settings, image),
        "size": sum(layer.size for layer in image.layers),
        "from": manifest.get("from"),
        "oci": manifest.get("oci"),
        "layers": [_layer(data) for data in manifest["layers"]],
        "mounts": [_layer(data) | {"path": data["path"]} for data in manifest.get("mounts", [])],
        "packages": [f"{p['name']} {p['version']}" for p in manifest["packages"].get("packages", ())]
        if kind == "packages"
        else [],
    }


def _what(manifest: dict[str, Any]) -> str:
    """Its parts in a few words."""
    parts = [manifest["oci"]["reference"]] if "oci" in manifest else []
    parts += [f"agent {d['name']} {d['version']}" for d in manifest["layers"] if "licence" in d]
    parts += manifest.get("added", [])
    parts += [f"{d['reference']} at {d['path']}" for d in manifest.get("mounts", [])]
    return ", ".join(parts) or "distribution packages"


def _layer(data: dict[str, Any]) -> dict[str, Any]:
    kept = ("name", "digest", "size", "version", "licence", "packages", "reference", "digest_of")
    return {key: data[key] for key in kept if key in data}


def _last_used(settings: Settings, image: Image) -> float | None:
    with contextlib.suppress(OSError):
        return _current(settings, image).stat().st_mtime
    return None


def _current(settings: Settings, image: Image) -> Path:
    return settings.cache / "images" / image.name / "current"
