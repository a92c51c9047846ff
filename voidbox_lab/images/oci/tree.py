"""What is in a layer, or in several on top of each other: names, kinds, owners; not contents.

Follows image-layer.md of the OCI image specification: a later member of a name replaces an earlier one;
``.wh.NAME`` hides NAME of the layers below, ``.wh..wh..opq`` all that is below in its directory, whatever the
order in the archive.

What belongs to the image is not the agent's to change: uid and gid 1000, which are the agent's in a box, become
root's, what everybody may write is everybody's to read only (but for shared directories with the sticky bit), and
set-id bits go. So nothing that the agent may execute by default is anything it could have written.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from voidbox_lab.images.oci.archive import (
    MAX_DEPTH,
    MAX_NAME,
    MAX_PATH,
    Allowance,
    Source,
    members,
    parts,
    raw,
    target,
    unsafe,
)
from voidbox_lab.images.rootfs import AGENT_UID

Kind = Literal["directory", "file", "symlink", "whiteout"]
_PREFIX, _OPAQUE, _AUFS = ".wh.", ".wh..wh..opq", ".wh..wh."
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Meta:
    """Owner, mode (permission bits alone) and time of a file."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0


@dataclass(eq=False, slots=True)
class Node:
    """One name. Names that share a `content` are hard links of one file."""

    kind: Kind
    meta: Meta
    link: str = ""
    """Where a symbolic link leads."""
    content: tuple[int, int] | None = None
    """Where a file's bytes are: number of the layer, number of the member."""
    children: dict[str, Node] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    """Names of layers below that a directory has no more."""
    opaque: bool = False
    """Whether nothing of layers below shows through a directory."""
    implied: bool = False
    """A directory that is only the way to something."""


def read_layer(source: Source, number: int, allowance: Allowance) -> Node:
    """The root of what the layer `source` holds; `number` is its place among the layers that are read together.

    Raises:
        ProviderError: it is damaged or unsafe.
        LimitExceeded: it is too much.
    """
    root = _directory(())
    for index, _, member in members(source, allowance):
        _add(root, member, (number, index), allowance)
    _settle(root)
    return root


def stacked(layers: Iterable[Node]) -> Node:
    """One tree of all `layers`, from bottom to top, with nothing hidden left in it. The layers are used up."""
    merged = _directory(())
    for layer in layers:
        _merge(merged, layer)
    return merged


def walk(root: Node) -> Iterator[tuple[str, Node]]:
    """Path and node of everything below `root`, directories before what is in them, each in order of names."""
    # Iterators, not paths: a directory may hold most of an image, at the end of a long path.
    pending = [("", iter(sorted(root.children.items())))]
    while pending:
        prefix, children = pending[-1]
        name, node = next(children, ("", None))
        if node is None:
            pending.pop()
            continue
        yield prefix + name, node
        if node.children:
            pending.append((f"{prefix}{name}/", iter(sorted(node.children.items()))))


def _add(root: Node, member: tarfile.TarInfo, content: tuple[int, int], allowance: Allowance) -> None:
    path = parts(member.name)
    if not path:
        if member.isdir():
            root.meta = _meta(member)
        return
    above, name = path[:-1], path[-1]
    if name.startswith(_PREFIX):
        hidden = name.removeprefix(_PREFIX)
        if name == _OPAQUE:
            _place(root, above, member.name, allowance).opaque = True
        elif not name.startswith(_AUFS):  # aufs kept its own records under such names
            if hidden in {"", ".", ".."}:
                raise unsafe(member.name, "it hides nothing that could be there")
            _place(root, above, member.name, allowance).hidden.add(hidden)
        return
    made: Node | None = None
    if member.isdir():
        made = Node("directory", _meta(member))
    elif member.issym():
        made = Node("symlink", _meta(member), link=target(member))
        allowance.take_name(made.link)
    elif member.islnk():
        original = _find(root, parts(member.linkname))
        if original is None or original.kind not in {"file", "symlink"}:
            raise unsafe(member.name, f"it is a hard link to {member.linkname[:100]!a}, which is not in its layer")
        made = replace(original)
    elif member.isreg():
        made = Node("file", _meta(member), content=content)
    # Devices, FIFOs and the like: the guest has devtmpfs, and a device 0:0 would be a whiteout.
    if made is None:
        return
    parent = _place(root, above, member.name, allowance)
    there = parent.children.get(name)
    if made.kind == "directory" and there is not None and there.kind == "directory":
        there.meta, there.implied = made.meta, False
    else:
        parent.children[name] = made


def _meta(member: tarfile.TarInfo) -> Meta:
    mode = member.mode & 0o1777
    if not (member.isdir() and mode & stat.S_ISVTX):
        mode &= ~(stat.S_IWOTH | stat.S_ISVTX)
    uid, gid = (0 if n == AGENT_UID else n for n in (member.uid, member.gid))
    # squashfs has 32 bits of seconds.
    return Meta(mode, uid, gid, min(max(int(member.mtime), 0), (1 << 32) - 1))


def _directory(path: tuple[str, ...]) -> Node:
    """A directory that nobody described."""
    mode = 0o1777 if path in {("tmp",), ("var", "tmp")} else 0o700 if path == ("root",) else 0o755
    return Node("directory", Meta(mode), implied=True)


def _place(root: Node, path: tuple[str, ...], name: str, allowance: Allowance) -> Node:
    """The directory `path` of the tree, links on the way resolved in it, made where it lacks."""
    node, done = root, [root]
    walked: list[str] = []
    pending, links = list(reversed(path)), 0
    while pending:
        part = pending.pop()
        if part == "..":
            if walked:
                walked.pop()
                done.pop()
                node = done[-1]
            continue
        there = node.children.get(part)
        if there is not None and there.kind == "symlink":
            links += 1
            if links > _MAX_LINKS:
                raise unsafe(name, "it leads through a ring of links")
            if there.link.startswith("/"):
                node, done, walked = root, [root], []
            pending += reversed([p for p in there.link.split("/") if p not in {"", "."}])
            if len(pending) > MAX_DEPTH:
                raise unsafe(name, f"a link on its way leads more than {MAX_DEPTH} directories deep")
            continue
        if there is None or there.kind != "directory":
            allowance.take_member()
            there = node.children[part] = _directory((*walked, part))
        node = there
        done.append(node)
        walked.append(part)
    # What `parts` saw to in the name, of where links have led.
    if len(walked) > MAX_DEPTH or sum(len(raw(part)) + 1 for part in walked) + MAX_NAME > MAX_PATH:
        raise unsafe(name, "the way to it is longer than Linux allows")
    return node


def _find(root: Node, path: tuple[str, ...]) -> Node | None:
    node: Node | None = root
    for part in path:
        node = node.children.get(part) if node is not None else None
    return node


def _settle(root: Node) -> None:
    """Turn what directories hide into whiteouts; a name that is hidden and there again is new."""
    pending = [root]
    while pending:
        node = pending.pop()
        for name in node.hidden:
            there = node.children.get(name)
            if there is None:
                node.children[name] = Node("whiteout", Meta(0))
            elif there.kind == "directory":
                there.opaque = True
        node.hidden = set()
        pending += [child for child in node.children.values() if child.kind == "directory"]


def _merge(lower: Node, upper: Node) -> None:
    pending = [(lower, upper)]
    while pending:
        lower, upper = pending.pop()
        if upper.opaque:
            lower.children = {}
        if not upper.implied:
            lower.meta, lower.implied = upper.meta, False
        for name, node in upper.children.items():
            there = lower.children.get(name)
            if node.kind == "whiteout":
                lower.children.pop(name, None)
            elif node.kind == "directory":
                if there is None or there.kind != "directory":
                    there = lower.children[name] = Node("directory", node.meta, implied=node.implied)
                pending.append((there, node))
            else:
                lower.children[name] = node
