"""Removes what is no longer of use: images by what they are and when they were last wanted, then their files."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError
from voidbox_lab.images.build import blobs, read
from voidbox_lab.images.store import SUFFIX, Blob, Store
from voidbox_lab.settings import Settings

_DEEPEST = 8
"""Images below one another: a base, an agent, packages, mounts, and some to spare."""


def prune(settings: Settings, *, everything: bool = False, unused_for_s: float | None = None) -> int:
    """Remove images that are not current, then files and records that no image uses; returns bytes freed.

    An image that was put together from another (by an agent's layer, by packages) is not current either once that
    other one is not: it would be put together anew. With `unused_for_s` such images go, too, that no box was asked
    of for so many seconds. With `everything` the current images and all downloads go as well, fetched skills among
    them. Boxes that run keep what they have open.

    Raises:
        LimitExceeded: a build held the cache for too long.
    """
    store = Store(settings.cache)
    freed = 0
    with store.lock():
        kept = {} if everything else _kept(store, unused_for_s)
        for directory in sorted((store.root / "images").glob("*")):
            for version in [p for p in directory.iterdir() if p.is_dir()]:
                if kept.get(directory.name) != version.name:
                    shutil.rmtree(version)
            if directory.name not in kept:
                shutil.rmtree(directory)
        keep = {
            store.path(blob)
            for name, digest in kept.items()
            for _, blob in blobs(read(store, name, f"sha256:{digest}"))
        }
        for kind, suffix in SUFFIX.items():
            freed += _remove(p for p in (store.root / kind / "sha256").glob(f"*{suffix}") if p not in keep)
        for record in (store.root / "steps").glob("*.json"):
            with contextlib.suppress(ProviderError, ValueError):
                if store.whole(Blob.from_dict(json.loads(record.read_bytes()))):
                    continue
            record.unlink(missing_ok=True)
        if everything:
            for ending in ("deb", "whl"):
                freed += _remove((store.root / "packages").glob(f"*.{ending}"))
            for name in ("npm", "locks", "oci", "skills"):
                freed += _remove(p for p in (store.root / name).rglob("*") if p.is_file())
                shutil.rmtree(store.root / name, ignore_errors=True)
            _remove((store.root / "apt").glob("status-*"))
        for left in store.root.glob("building-*"):
            # Only a builder that was killed leaves one behind: we hold the lock.
            shutil.rmtree(left, ignore_errors=True)
    return freed


def _kept(store: Store, unused_for_s: float | None) -> dict[str, str]:
    """Name to hex digest of the images that stay."""
    manifests = dict(_current(store))
    now = time.time()

    def chain(name: str) -> list[str]:
        """`name` and what it was put together from, down to a base; nothing if a part of that was replaced."""
        names = [name]
        while below := manifests[names[-1]][1].get("from"):
            current = manifests.get(str(below.get("name")))
            if current is None or f"sha256:{current[0]}" != below.get("digest") or len(names) > _DEEPEST:
                return []
            names.append(below["name"])
        return names

    def wanted(name: str) -> bool:
        if unused_for_s is None or not manifests[name][1].get("from"):
            return True
        return now - (store.root / "images" / name / "current").stat().st_mtime <= unused_for_s

    # Boxes are asked of the image on top; what is below it is needed all the same.
    kept = {part for name in manifests if wanted(name) for part in chain(name)}
    return {name: digest for name, (digest, _) in manifests.items() if name in kept}


def _current(store: Store) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    for path in sorted((store.root / "images").glob("*/current")):
        digest = path.read_text(encoding="ascii", errors="replace").strip()
        with contextlib.suppress(ProviderError, FileNotFoundError, OSError):
            yield path.parent.name, (digest, read(store, path.parent.name, f"sha256:{digest}"))


def _remove(paths: Iterable[Path]) -> int:
    freed = 0
    for path in list(paths):
        freed += path.stat().st_blocks * 512
        path.unlink()
    return freed
