"""Puts packages on an image: one layer for each, made once, found again without lock or network.

What a reference means exactly is planned once and pinned in the cache (``locks/``), by the reference and by what
of the image below matters to it; `refresh` plans anew. A layer is made from such a plan alone (`Store.step`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from voidbox_lab.errors import Unavailable, UserError
from voidbox_lab.images import squashfs, unpack
from voidbox_lab.images.assemble import how
from voidbox_lab.images.build import publish, resolve
from voidbox_lab.images.layers import deb, npm, pypi, runtime
from voidbox_lab.images.layers.base import Base, Work
from voidbox_lab.images.layers.reference import KindName, Reference, parse
from voidbox_lab.images.model import Image, Progress, Report, silent
from voidbox_lab.images.store import Blob, Store, write
from voidbox_lab.settings import Settings
from voidbox_lab.spec.digest import canonical_json, digest_json

NODE = Reference("runtime", "node")


class _Kind(Protocol):
    @property
    def HOW(self) -> tuple[str, ...]: ...  # noqa: N802 - a constant of each module
    def key(self, base: Base, reference: Reference, /) -> Any: ...
    def plan(self, work: Work, reference: Reference, /) -> dict[str, Any]: ...
    def files(self, lock: dict[str, Any], /) -> list[dict[str, Any]]: ...
    def inputs(self, base: Base, lock: dict[str, Any], /) -> Any: ...
    def fill(self, work: Work, lock: dict[str, Any], tree: unpack.Tree, /) -> None: ...


_KINDS: dict[KindName, _Kind] = {"deb": deb, "npm": npm, "pypi": pypi, "runtime": runtime}


@dataclass(frozen=True)
class _Part:
    """A reference and what it means."""

    reference: Reference
    lock: dict[str, Any]

    @property
    def files(self) -> list[dict[str, Any]]:
        return _KINDS[self.reference.kind].files(self.lock)


def add_packages(
    settings: Settings,
    image: Image,
    packages: Sequence[str],
    *,
    room: int,
    progress: Report | None = None,
    refresh: bool = False,
) -> Image:
    """`image` with `packages` (``deb:NAME``, ``pypi:NAME==VERSION``, ``npm:NAME@VERSION``) on top, published
    under a name of its own. Blocking; quick and without a lock once all layers are there.

    Args:
        room: most layers to add; what is more is packed into one.
        refresh: look for newer versions, where none is named, instead of taking what was pinned.

    Raises:
        UserError: there is no such package or no wheel of it, one is named twice, or the image takes none.
        Unavailable: a host tool or the network is missing.
        LimitExceeded: a tool or another builder took too long.
        ProviderError: what was fetched is damaged, unsafe, or not what was pinned.
    """
    report = progress or silent
    references = expand(map(parse, packages))
    if not references:
        return image
    if room < 1:
        raise UserError(f"Image {image.name!r} has {len(image.layers)} layers, so that none can be added.")
    base, store = Base.of(settings, image), Store(settings.cache)
    mksquashfs = squashfs.version()
    name = _name(image, packages) + (f".{room}" if len(references) > room else "")

    def inputs(group: Sequence[_Part]) -> Any:
        modules = sorted({m for part in group for m in _KINDS[part.reference.kind].HOW})
        return {
            "how": how("squashfs", *modules),
            "mksquashfs": mksquashfs,
            "compression": base.recipe.image.compression,
            "parts": [
                [part.reference.kind, _KINDS[part.reference.kind].inputs(base, part.lock)] for part in group
            ],
        }

    def manifest(groups: Sequence[Sequence[_Part]], blobs: Sequence[Blob]) -> dict[str, Any]:
        layers = [asdict(blob) | _about(group) for group, blob in zip(groups, blobs, strict=True)]
        below = {"name": image.name, "digest": image.digest}
        added = {"layers": [*base.manifest["layers"], *layers], "from": below, "added": sorted(set(packages))}
        return base.manifest | added

    if not refresh and (image_there := _there(settings, store, base, references, room, inputs, manifest, name)):
        return image_there
    with store.lock(), store.workspace() as directory:
        work = Work(store, base, directory, report)
        groups = packed([_planned(work, r, refresh=refresh) for r in references], room)
        blobs = [store.step(inputs(group), "layers", partial(_make, work, group)) for group in groups]
        return publish(store, name, manifest(groups, blobs))


def expand(references: Iterable[Reference]) -> list[Reference]:
    """`references` in order, each once, after what they need to run.

    Raises:
        UserError: two versions of one package.
    """
    wanted = set(references)
    if any(r.kind == "npm" for r in wanted):
        wanted |= {NODE, *(Reference("deb", need) for need in runtime.load(NODE.name).needs)}
    ordered = sorted(wanted, key=lambda r: (r.kind != "runtime", r.kind, r.name, r.version or ""))
    for one, other in pairwise(ordered):
        if (one.kind, one.name) != (other.kind, other.name):
            continue
        if one.version and other.version:
            raise UserError(f"{one} and {other} cannot be in one box; keep one of them.", cause="packages")
        ordered.remove(one)  # the newest and an exact one: the exact one
        return expand(ordered)
    return ordered


def packed(parts: Sequence[_Part], room: int) -> list[list[_Part]]:
    """What goes into which layer: each part into its own while there is room, all the rest into the last one.

    Parts with nothing in them, since the image has it all, go nowhere.
    """
    full = [part for part in parts if part.files]
    if len(full) <= room:
        return [[part] for part in full]
    return [*([part] for part in full[: room - 1]), list(full[room - 1 :])]


def _there(
    settings: Settings,
    store: Store,
    base: Base,
    references: Sequence[Reference],
    room: int,
    inputs: Any,
    manifest: Any,
    name: str,
) -> Image | None:
    """The image that was published for the same, if all of it is there."""
    parts = []
    for reference in references:
        lock = _read(store, _path(store, base, reference))
        if lock is None:
            return None
        parts.append(_Part(reference, lock))
    groups = packed(parts, room)
    blobs = [store.made(inputs(group), "layers") for group in groups]
    if None in blobs:
        return None
    with contextlib.suppress(Unavailable):
        there = resolve(settings, name)
        if there.digest == digest_json(manifest(groups, blobs)):
            return there
    return None


def _planned(work: Work, reference: Reference, *, refresh: bool) -> _Part:
    path = _path(work.store, work.base, reference)
    lock = None if refresh else _read(work.store, path)
    if lock is None:
        work.report(Progress("packages", f"Planning {reference}"))
        lock = _KINDS[reference.kind].plan(work, reference)
        write(path, canonical_json(lock))
    return _Part(reference, lock)


def _make(work: Work, group: Sequence[_Part], target: Path) -> None:
    root = unpack.make_directory(target.parent / "root")
    # The same links as below: a directory of that name would hide what the image has there.
    unpack.merge_usr(root)
    tree = unpack.Tree(root)
    for part in group:
        _KINDS[part.reference.kind].fill(work, part.lock, tree)
    work.report(Progress("packages", f"Packing {_about(group)['name']}"))
    squashfs.make(root, target, compression=work.base.recipe.image.compression)


def _about(group: Sequence[_Part]) -> dict[str, Any]:
    """What a manifest says of a layer."""
    names = [str(part.reference) for part in group]
    return {
        "name": names[0] if len(names) == 1 else f"packages ({len(names)})",
        "packages": [{"for": str(part.reference), "files": part.files} for part in group],
    }


def _name(image: Image, packages: Sequence[str]) -> str:
    # Of what was asked for, not of what it meant then: a refresh is the same image anew.
    digest = digest_json([image.name, sorted(set(packages))]).removeprefix("sha256:")
    return f"{image.name[:60]}+{digest[:12]}"


def _path(store: Store, base: Base, reference: Reference) -> Path:
    request = {"package": str(reference), "for": _KINDS[reference.kind].key(base, reference)}
    return store.root / "locks" / (digest_json(request).removeprefix("sha256:") + ".json")


def _read(store: Store, path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        lock = json.loads(path.read_bytes())
        return lock if isinstance(lock, dict) else None
    return None
