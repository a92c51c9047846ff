"""Writes OCI layers as squashfs: one for one, or several squashed into one. Content-addressed by diff ids.

Two looks at each archive: the first learns what is in it and checks all of it, the second copies the contents. The
new tar stream goes straight into sqfstar (squashfs-tools 4.5), which needs no root to write owners, whiteouts and
overlayfs's attributes: a whiteout is a character device 0:0, an opaque directory has the extended attribute
``trusted.overlay.opaque`` (Documentation/filesystems/overlayfs.rst). No other attribute, and no other device, of
an image gets there.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError
from voidbox_lab.images import squashfs
from voidbox_lab.images.assemble import how
from voidbox_lab.images.model import Progress, Report
from voidbox_lab.images.oci import archive
from voidbox_lab.images.oci.archive import Allowance, Source, members
from voidbox_lab.images.oci.tree import Meta, Node, read_layer, stacked, walk
from voidbox_lab.images.store import Blob, Store

_OPAQUE = {"SCHILY.xattr.trusted.overlay.opaque": "y"}
_COPY = 1 << 20


def inputs(diff_ids: Sequence[str], *, flat: bool) -> dict[str, Any]:
    """What the squashfs of these layers depends on, for `Store.step`. One that is not `flat` still hides what is
    below it."""
    return {
        "how": how("squashfs", "oci/archive", "oci/tree", "oci/layers", "../tarstream"),
        "sqfstar": squashfs.version(),
        "flat": flat,
        "diff_ids": list(diff_ids),
    }


def made(store: Store, diff_ids: Sequence[str], *, flat: bool) -> Blob | None:
    """The squashfs of these layers, if it is there."""
    return store.made(inputs(diff_ids, flat=flat), "layers")


def make(
    store: Store, sources: Sequence[Source], *, flat: bool, allowance: Allowance, report: Report, what: str
) -> Blob:
    """The squashfs of `sources`, from bottom to top, made if it is not there. The caller holds the store's lock.

    Args:
        flat: with nothing hidden left in it; several layers always are. Else one that lies on others.
        allowance: what all layers of the image may amount to.
        what: the image, for people.

    Raises:
        Unavailable: squashfs-tools or zstd are missing.
        ProviderError: a layer is damaged, unsafe or not what its diff id says; or sqfstar failed.
        LimitExceeded: the layers are too large, or it took too long.
    """

    def write(target: Path) -> None:
        report(Progress("unpack", f"Reading {what}"))
        with archive.refusing():
            trees = [read_layer(source, number, allowance) for number, source in enumerate(sources)]
            root = stacked(trees) if flat else trees[0]
            newest = 0
            for path, node in walk(root):
                allowance.take_name(path)
                newest = max(newest, node.meta.mtime)
            report(Progress("squash", f"Packing {what}"))
            squashfs.from_tar(target, lambda tar: _write(tar, root, sources), newest=newest, compression="none")

    if not flat and len(sources) != 1:
        raise ProviderError("Several layers can only be made flat.", cause="internal")
    return store.step(inputs([s.diff_id for s in sources], flat=flat), "layers", write)


def _write(tar: tarfile.TarFile, root: Node, sources: Sequence[Source]) -> None:
    names: dict[tuple[int, int], list[tuple[str, Meta]]] = {}
    for path, node in walk(root):
        if node.kind == "file":
            assert node.content is not None
            names.setdefault(node.content, []).append((path, node.meta))
            continue
        tar.addfile(_header(path, node))
    for number, source in enumerate(sources):
        wanted = sum(1 for layer, _ in names if layer == number)
        for index, packed, member in members(source) if wanted else ():
            links = names.get((number, index))
            if links is None:
                continue
            _copy(tar, links, packed, member)
            wanted -= 1
            if not wanted:
                break


def _copy(
    tar: tarfile.TarFile, links: list[tuple[str, Meta]], packed: tarfile.TarFile, member: tarfile.TarInfo
) -> None:
    """One file's bytes under its first name, and its other names as hard links."""
    (first, meta), *others = links
    content = packed.extractfile(member)
    if content is None:
        raise ProviderError("A layer of the OCI image changed while it was read; try again.", cause="cache")
    header = _regular(first, meta)
    header.size = member.size
    tar.addfile(header, content)
    for name, same in others:
        link = _regular(name, same)
        link.type, link.linkname = tarfile.LNKTYPE, first
        tar.addfile(link)


def _header(path: str, node: Node) -> tarfile.TarInfo:
    header = _regular(path, node.meta)
    if node.kind == "directory":
        header.type = tarfile.DIRTYPE
        header.pax_headers = dict(_OPAQUE) if node.opaque else {}
    elif node.kind == "symlink":
        header.type, header.linkname = tarfile.SYMTYPE, node.link
    else:
        header.type, header.devmajor, header.devminor = tarfile.CHRTYPE, 0, 0
    return header


def _regular(path: str, meta: Meta) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.mode, header.uid, header.gid, header.mtime = meta.mode, meta.uid, meta.gid, meta.mtime
    return header
