"""Builds, finds, lists, verifies and prunes images."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError, Unavailable, UserError
from voidbox_lab.images import assemble
from voidbox_lab.images import recipe as recipes
from voidbox_lab.images.apt import Apt, Package
from voidbox_lab.images.model import BASE_ARGUMENTS, Image, Layer, Progress, Report, silent
from voidbox_lab.images.store import SUFFIX, Blob, Store, is_digest, write
from voidbox_lab.settings import Settings
from voidbox_lab.spec.digest import canonical_json, digest_json

_MANIFEST_VERSION = 1


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
        guest = assemble.guest_layer(store, recipe, distribution, report)
        kernel, initrd, release = assemble.kernel_and_initramfs(
            store, recipe, lock["kernel"], debs, lock["initramfs"][0], report
        )
        scratch = assemble.scratch_template(store, recipe, report)
        manifest = {
            "version": _MANIFEST_VERSION,
            "kernel": asdict(kernel),
            "kernel_release": release,
            "initrd": asdict(initrd),
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
    """All whole images in the cache, by name and digest; damaged ones are left out."""
    store = Store(settings.cache)
    found = []
    for path in sorted((store.root / "images").glob("*/*/manifest.json")):
        with contextlib.suppress(ProviderError, FileNotFoundError):
            found.append(load(store, path.parent.parent.name, "sha256:" + path.parent.name))
    return found


def verify(settings: Settings, image: Image) -> list[str]:
    """Names of the files of `image` whose content is not what its digest says; reads every byte."""
    store = Store(settings.cache)
    return [label for label, blob in _blobs(_read(store, image.name, image.digest)) if not store.verify(blob)]


def prune(settings: Settings, *, everything: bool = False) -> int:
    """Remove images that are not current, then files and records that no image uses; returns bytes freed.

    With `everything` the current images and all package downloads go too. Boxes that run keep what they
    have open.

    Raises:
        LimitExceeded: a build held the cache for too long.
    """
    store = Store(settings.cache)
    freed = 0
    with store.lock():
        keep: set[Path] = set()
        for directory in sorted((store.root / "images").glob("*")):
            current = directory / "current"
            digest = current.read_text(encoding="ascii").strip() if current.is_file() else None
            for version in sorted(p for p in directory.iterdir() if p.is_dir()):
                if version.name == digest and not everything:
                    with contextlib.suppress(ProviderError, FileNotFoundError):
                        manifest = _read(store, directory.name, "sha256:" + version.name)
                        keep |= {store.path(blob) for _, blob in _blobs(manifest)}
                        continue
                shutil.rmtree(version)
            if everything:
                shutil.rmtree(directory)
        for kind, suffix in SUFFIX.items():
            freed += _remove(p for p in (store.root / kind / "sha256").glob(f"*{suffix}") if p not in keep)
        for record in (store.root / "steps").glob("*.json"):
            with contextlib.suppress(ProviderError, ValueError):
                if store.whole(Blob.from_dict(json.loads(record.read_bytes()))):
                    continue
            record.unlink(missing_ok=True)
        if everything:
            freed += _remove((store.root / "packages").glob("*.deb"))
            shutil.rmtree(store.root / "locks", ignore_errors=True)
        for left in store.root.glob("building-*"):
            # Only a builder that was killed leaves one behind: we hold the lock.
            shutil.rmtree(left, ignore_errors=True)
    return freed


def publish(store: Store, name: str, manifest: dict[str, Any]) -> Image:
    """Write `manifest` as an image called `name` and make it the current one."""
    _check_name(name)
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
    """
    manifest = _read(store, name, digest)
    for label, blob in _blobs(manifest):
        if not store.whole(blob):
            raise Unavailable(
                f"The {label} of image {name!r} is missing or cut short in {store.root}; "
                "run `voidbox image build`.",
                cause="image-damaged",
            )
    layers = []
    for data in manifest["layers"]:
        blob = Blob.from_dict(data)
        layers.append(Layer(str(data["name"]), blob.digest, store.path(blob), blob.size))
    return Image(
        name=name,
        digest=digest,
        kernel=store.path(Blob.from_dict(manifest["kernel"])),
        initrd=store.path(Blob.from_dict(manifest["initrd"])),
        layers=tuple(layers),
        scratch=store.path(Blob.from_dict(manifest["scratch"])),
        kernel_release=str(manifest["kernel_release"]),
        cmdline=" ".join((*manifest["arguments"], f"voidbox.layers={len(layers)}")),
    )


def read_manifest(settings: Settings, image: Image) -> dict[str, Any]:
    """The manifest of `image`: digests of all files and the exact packages it was made of."""
    return _read(Store(settings.cache), image.name, image.digest)


def _read(store: Store, name: str, digest: str) -> dict[str, Any]:
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


def _blobs(manifest: dict[str, Any]) -> list[tuple[str, Blob]]:
    named = [(f"layer {d['name']}", Blob.from_dict(d)) for d in manifest["layers"]]
    return [(k, Blob.from_dict(manifest[k])) for k in ("kernel", "initrd", "scratch")] + named


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


def _remove(paths: Iterable[Path]) -> int:
    freed = 0
    for path in list(paths):
        freed += path.stat().st_blocks * 512
        path.unlink()
    return freed


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]{0,80}", name):
        raise UserError(
            f"{name[:80]!r} cannot be an image's name; use lower-case letters, digits, '-', '.' and '+'."
        )
