"""Builds, finds, lists and verifies images."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict
from typing import Any

from voidbox_lab.errors import ProviderError, Unavailable, UserError
from voidbox_lab.images import assemble
from voidbox_lab.images import recipe as recipes
from voidbox_lab.images.apt import Apt, Package
from voidbox_lab.images.model import BASE_ARGUMENTS, Image, Layer, Progress, Report, silent
from voidbox_lab.images.store import Blob, Store, is_digest, write
from voidbox_lab.settings import Settings
from voidbox_lab.spec.digest import canonical_json, digest_json

_MANIFEST_VERSION = 2
MAX_DISKS = 19
"""Read-only disks of a box: with the scratch disk the letters that the initramfs knows."""


def build(
    settings: Settings, name: str = "default", progress: Report | None = None, *, refresh: bool = False
) -> Image:
    """Build the image `name`, or what of it is missing, and make it the current one.

    The versions of packages are pinned by the first build; `refresh` plans them anew. Needs no network once
    all packages are cached. Waits for another process that builds. Blocking: minutes at first, a second later.

    Raises:
        UserError: no such recipe.
        Unavailable: a host tool, apt's lists or the network is missing; the message says what to run.
        LimitExceeded: a tool or another builder took too long.
        ProviderError: a tool or a package misbehaved.
    """
    report = progress or silent
    recipe = recipes.load(name)
    store = Store(settings.cache)
    with store.lock():
        lock = _lock(store, recipe, report, refresh=refresh)
        apt = Apt(settings.cache, recipe.image.architecture)
        wanted = {p for part in lock.values() for p in part}

        def advance(done: int, total: int) -> None:
            report(Progress("download", "Downloading packages", done, total))

        report(Progress("download", f"Checking {len(wanted)} package files"))
        debs = apt.fetch(sorted(wanted), advance)
        distribution = assemble.distribution_layer(store, recipe, lock["packages"], debs, report)
        kernel, initrd, modules, release = assemble.kernel_and_initramfs(
            store, recipe, lock["kernel"], debs, lock["initramfs"][0], report
        )
        guest = assemble.guest_layer(store, recipe, distribution, modules, report)
        scratch = assemble.scratch_template(store, recipe, report)
        manifest = {
            "version": _MANIFEST_VERSION,
            "kernel": asdict(kernel),
            "kernel_release": release,
            "initrd": asdict(initrd),
            "modules": asdict(modules),
            "scratch": asdict(scratch),
            "layers": [asdict(distribution) | {"name": "distribution"}, asdict(guest) | {"name": "guest"}],
            "arguments": list(BASE_ARGUMENTS),
            "packages": {part: [p.to_dict() for p in packages] for part, packages in lock.items()},
        }
        image = publish(store, name, manifest)
    report(Progress("done", f"Image {name} {image.digest[7:19]} is ready"))
    return image


def resolve(settings: Settings, name: str = "default") -> Image:
    """The current image `name`, whole by the sizes of its files. Quick; reads two small files.

    Raises:
        Unavailable: it was never built, or a file of it is gone or cut short.
    """
    _check_name(name)
    store = Store(settings.cache)
    try:
        current = (store.root / "images" / name / "current").read_text(encoding="ascii").strip()
        return load(store, name, "sha256:" + current)
    except FileNotFoundError:
        raise Unavailable(
            f"There is no image {name!r} in {settings.cache} yet; run `voidbox image build"
            f"{'' if name == 'default' else ' ' + name}`.",
            cause="image-missing",
        ) from None


def list_images(settings: Settings) -> list[Image]:
    """All whole images in the cache, by name and digest; not those that are damaged or that no box can have."""
    store = Store(settings.cache)
    found = []
    for path in sorted((store.root / "images").glob("*/*/manifest.json")):
        with contextlib.suppress(ProviderError, UserError, FileNotFoundError):
            found.append(load(store, path.parent.parent.name, "sha256:" + path.parent.name))
    return found


def verify(settings: Settings, image: Image) -> list[str]:
    """Names of the files of `image` whose content is not what its digest says; reads every byte."""
    store = Store(settings.cache)
    return [label for label, blob in blobs(read(store, image.name, image.digest)) if not store.verify(blob)]


def publish(store: Store, name: str, manifest: dict[str, Any]) -> Image:
    """Write `manifest` as an image called `name` and make it the current one.

    Raises:
        UserError: a box has no room for so many disks, or the name is none; nothing is written.
    """
    _check_name(name)
    _check_disks(name, manifest)
    digest = digest_json(manifest)
    directory = store.root / "images" / name
    write(directory / digest.removeprefix("sha256:") / "manifest.json", canonical_json(manifest))
    image = load(store, name, digest)
    write(directory / "current", digest.removeprefix("sha256:").encode() + b"\n")
    return image


def load(store: Store, name: str, digest: str) -> Image:
    """The image `name` with `digest`, as its manifest says.

    Raises:
        FileNotFoundError: there is no such manifest.
        Unavailable: the manifest is damaged, or a file is gone or cut short.
        UserError: a box has no room for so many disks.
    """
    manifest = read(store, name, digest)
    _check_disks(name, manifest)
    for label, blob in blobs(manifest):
        if not store.whole(blob):
            raise Unavailable(
                f"The {label} of image {name!r} is missing or cut short in {store.root}; "
                "run `voidbox image build`.",
                cause="image-damaged",
            )
    layers = []
    mounts = manifest.get("mounts", [])
    for data in (*manifest["layers"], *mounts):
        blob = Blob.from_dict(data)
        layers.append(Layer(str(data["name"]), blob.digest, store.path(blob), blob.size))
    counts = [f"voidbox.layers={len(manifest['layers'])}", *([f"voidbox.mounts={len(mounts)}"] if mounts else [])]
    return Image(
        name=name,
        digest=digest,
        kernel=store.path(Blob.from_dict(manifest["kernel"])),
        initrd=store.path(Blob.from_dict(manifest["initrd"])),
        layers=tuple(layers),
        scratch=store.path(Blob.from_dict(manifest["scratch"])),
        kernel_release=str(manifest["kernel_release"]),
        cmdline=" ".join((*manifest["arguments"], *counts)),
    )


def read_manifest(settings: Settings, image: Image) -> dict[str, Any]:
    """The manifest of `image`: digests of all files and the exact packages it was made of."""
    return read(Store(settings.cache), image.name, image.digest)


def read(store: Store, name: str, digest: str) -> dict[str, Any]:
    """The manifest of the image `name` with `digest`.

    Raises:
        FileNotFoundError: there is no such manifest.
        Unavailable: it is damaged, or of another version of this program.
    """
    damaged = Unavailable(
        f"The manifest of image {name!r} in {store.root} is damaged; run `voidbox image build`.",
        cause="image-damaged",
    )
    if not is_digest(digest):
        raise damaged
    data = (store.root / "images" / name / digest.removeprefix("sha256:") / "manifest.json").read_bytes()
    try:
        manifest = json.loads(data)
    except ValueError:
        raise damaged from None
    # The manifest's name is its digest, so that a changed one is seen at once.
    if not isinstance(manifest, dict) or digest_json(manifest) != digest:
        raise damaged
    if manifest.get("version") != _MANIFEST_VERSION:
        raise Unavailable(
            f"Image {name!r} was built by another version of voidbox-lab; run `voidbox image build`.",
            cause="image-outdated",
        )
    return manifest


def blobs(manifest: dict[str, Any]) -> list[tuple[str, Blob]]:
    """The files that a manifest names, each with a word for people."""
    disks = (*manifest["layers"], *manifest.get("mounts", []))
    named = [(f"layer {d['name']}", Blob.from_dict(d)) for d in disks]
    return [(k, Blob.from_dict(manifest[k])) for k in ("kernel", "initrd", "modules", "scratch")] + named


def _lock(
    store: Store, recipe: recipes.Recipe, report: Report, *, refresh: bool
) -> dict[str, tuple[Package, ...]]:
    """The pinned packages of `recipe`: ``packages``, ``kernel`` and ``initramfs``."""
    request = {
        "install": recipe.packages.install,
        "omit": recipe.packages.omit,
        "kernel": [recipe.kernel.packages, recipe.kernel.take],
        "initramfs": recipe.initramfs.package,
        "architecture": recipe.image.architecture,
    }
    path = store.root / "locks" / (digest_json(request).removeprefix("sha256:") + ".json")
    if not refresh:
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            saved = json.loads(path.read_bytes())
            return {part: tuple(Package(**p) for p in saved[part]) for part in ("packages", "kernel", "initramfs")}
    report(Progress("resolve", "Planning packages"))
    apt = Apt(store.root, recipe.image.architecture)
    omitted = frozenset(recipe.packages.omit)
    lock = {
        "packages": tuple(p for p in apt.resolve(recipe.packages.install) if p.name not in omitted),
        "kernel": _kernel(apt, recipe.kernel),
        "initramfs": tuple(
            p for p in apt.resolve([recipe.initramfs.package]) if p.name == recipe.initramfs.package
        ),
    }
    write(path, canonical_json({part: [p.to_dict() for p in packages] for part, packages in lock.items()}))
    return lock


def _kernel(apt: Apt, part: recipes.KernelPart) -> tuple[Package, ...]:
    trouble: Unavailable | None = None
    for candidate in part.packages:
        try:
            closure = apt.resolve([candidate])
        except Unavailable as error:
            trouble = trouble or error
            continue
        return tuple(p for p in closure if p.name.startswith(part.take) and p.name != candidate)
    raise trouble or Unavailable("The image's recipe names no kernel package.")


def _check_disks(name: str, manifest: dict[str, Any]) -> None:
    disks = len(manifest["layers"]) + len(manifest.get("mounts", ()))
    if disks > MAX_DISKS:
        raise UserError(
            f"Image {name!r} has {disks} layers and mounts, and a box room for {MAX_DISKS}; use fewer skills that "
            "are images.",
            cause="too-many-layers",
        )


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]{0,80}", name):
        raise UserError(
            f"{name[:80]!r} cannot be an image's name; use lower-case letters, digits, '-', '.' and '+'."
        )
