"""What a box's root is made of, as data: an image, and the layers that its skills need on top."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from voidbox_lab.spec.base import Frozen, Name
from voidbox_lab.spec.volume import MountPath

MAX_PACKAGES = 64
_PACKAGE = {
    "deb": re.compile(r"[a-z0-9][a-z0-9.+-]{1,99}(=[A-Za-z0-9.+:~-]{1,80})?"),
    "pypi": re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?(==[A-Za-z0-9.+!_-]{1,60})?"),
    "npm": re.compile(r"(@[a-z0-9-][a-z0-9-._]{0,80}/)?[a-z0-9][a-z0-9-._]{0,100}(@[0-9A-Za-z.+-]{1,60})?"),
}
_DOMAIN = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*(:[0-9]{1,5})?"
_REPOSITORY = r"[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"((?P<domain>{_DOMAIN})/)?(?P<path>{_REPOSITORY}(/{_REPOSITORY})*)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
PACKAGE_PATTERN = "^(" + "|".join(f"{kind}:{one.pattern}" for kind, one in _PACKAGE.items()) + ")$"
REFERENCE_PATTERN = "^" + re.sub(r"\?P<\w+>", "", _REFERENCE.pattern) + "$"
"""The grammars for JSON Schema, which has no named groups."""


def check_package(text: str) -> str:
    """`text`, if it is a package.

    Raises:
        ValueError: it is not.
    """
    kind, _, rest = text.partition(":")
    if kind not in _PACKAGE or not _PACKAGE[kind].fullmatch(rest):
        raise ValueError(
            f"{text[:120]!r} is not a package; write deb:NAME, pypi:NAME==VERSION or npm:NAME@VERSION"
        )
    return text


Package = Annotated[str, Field(max_length=250), AfterValidator(check_package)]
"""``deb:jq``, ``pypi:mcp-server-time==2026.7.10``, ``npm:@modelcontextprotocol/server-filesystem@2026.7.4``; the
version may be left out, and then is the newest when the layer is built."""


def is_oci(image: str) -> bool:
    """Whether `image` is a reference to a registry, not the name of an image of our own."""
    return any(c in image for c in "/:@.")


def check_reference(text: str) -> str:
    """`text`, if it is an OCI reference: ``[REGISTRY/]REPOSITORY[:TAG][@sha256:DIGEST]``
    (distribution's reference grammar).

    Raises:
        ValueError: it is not.
    """
    if len(text) > 300 or not _REFERENCE.fullmatch(text):
        raise ValueError(f"{text[:120]!r} is not an OCI image; write REPOSITORY:TAG, as in python:3.12-slim")
    return text


Reference = Annotated[str, AfterValidator(check_reference)]
"""An OCI image in a registry; without one, in Docker's."""


def _check_image(text: str) -> str:
    if is_oci(text):
        return check_reference(text)
    if not re.fullmatch(r"[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?", text):
        raise ValueError(f"{text[:80]!r} is not an image; write default, or REPOSITORY:TAG as in python:3.12-slim")
    return text


ImageName = Annotated[
    str, Field(max_length=300, pattern=r"^[A-Za-z0-9][\w./:@+-]*$"), AfterValidator(_check_image)
]
"""An image of our own, by its name (``default``); or an OCI image, known by a ``:``, ``/``, ``@`` or ``.``."""


class OciMount(Frozen):
    """An OCI image's file system, read-only at a place in the box."""

    image: Reference
    path: MountPath


class Rootfs(Frozen):
    """What a box's root is made of. The same content gives the same layers, which boxes and templates share."""

    image: ImageName = "default"
    agent: Name | None = None
    """An agent CLI that is a layer of its own."""
    packages: tuple[Package, ...] = Field((), max_length=MAX_PACKAGES)
    """In alphabetical order, each once; see `Rootfs.of`."""
    oci: tuple[OciMount, ...] = Field((), max_length=8)
