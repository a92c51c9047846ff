"""The documents of an image: index, manifest and configuration, checked on the way in.

OCI image specification 1.1 (image-index.md, manifest.md, config.md), and Docker's schema 2, which is the same but
for its media types.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

import pydantic

from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.images.oci.archive import MAX_UNPACKED, too_large

MAX_DOCUMENT = 4 << 20
"""Bytes; registries refuse larger manifests as well (distribution)."""
MAX_LAYERS = 127
"""Docker's own bound."""
MAX_LAYER_BYTES = 1 << 36
MAX_ENV = 512

_INDEX = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
_MANIFEST = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
_CONFIG = {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
_LAYER = {
    *(f"application/vnd.oci.image.layer.v1.tar{suffix}" for suffix in ("", "+gzip", "+zstd")),
    *(f"application/vnd.docker.image.rootfs.diff.tar{suffix}" for suffix in ("", ".gzip", ".zstd")),
}

Digest = Annotated[str, pydantic.StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
_Word = Annotated[str, pydantic.StringConstraints(max_length=200)]


class _Document(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore", frozen=True)


_T = TypeVar("_T", bound=_Document)


class Platform(_Document):
    """What a manifest of an index runs on."""

    os: _Word = ""
    architecture: _Word = ""
    variant: _Word = ""


class Descriptor(_Document):
    """One blob, by digest."""

    media_type: _Word = pydantic.Field("", alias="mediaType")
    digest: Digest
    size: int = pydantic.Field(ge=0, le=MAX_LAYER_BYTES)
    platform: Platform = Platform()


class Index(_Document):
    """Manifests for several platforms."""

    manifests: tuple[Descriptor, ...] = pydantic.Field(max_length=1000)


class Manifest(_Document):
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...] = pydantic.Field(max_length=MAX_LAYERS)


class _RootFs(_Document):
    type: str = "layers"
    diff_ids: tuple[Digest, ...] = pydantic.Field((), max_length=MAX_LAYERS)


class RunConfig(_Document):
    """How the image wants its programs to be run. User, Entrypoint and Cmd are for containers, not for boxes."""

    env: tuple[str, ...] = pydantic.Field((), alias="Env", max_length=MAX_ENV)
    working_dir: str = pydantic.Field("", alias="WorkingDir", max_length=4096)

    @pydantic.field_validator("env", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return value or ()

    @property
    def environment(self) -> dict[str, str]:
        """Name to value; what is no ``NAME=VALUE``, or could be none in a box, is left out."""
        pairs = [entry.partition("=") for entry in self.env if "\0" not in entry and len(entry) <= 1 << 17]
        return {name: value for name, equals, value in pairs if name and equals}


class Config(_Document):
    """What the image says of itself."""

    architecture: _Word
    os: _Word = "linux"
    rootfs: _RootFs
    config: RunConfig = RunConfig()

    @pydantic.field_validator("config", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return value or {}


def parse(data: bytes, what: str) -> Index | Manifest:
    """The index or manifest that `data` is; `what` names the image in messages.

    Raises:
        ProviderError: it is neither.
        UserError: it is something else than an image, or of a kind that boxes have no use for.
        LimitExceeded: its layers are too large, packed as they are.
    """
    document = _load(data, what)
    kind = document.get("mediaType") or ""
    if kind in _INDEX or (not kind and "manifests" in document):
        return _checked(Index, document, what)
    if kind and kind not in _MANIFEST:
        raise UserError(
            f"{what} is of the kind {str(kind)[:100]!r}, not an OCI or Docker (schema 2) image.", cause="no-image"
        )
    manifest = _checked(Manifest, document, what)
    if manifest.config.media_type not in _CONFIG:
        raise UserError(f"{what} is no image but an artifact of another kind; name an image.", cause="no-image")
    for layer in manifest.layers:
        if "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            raise UserError(
                f"{what} has a layer that its registry may not hand out and that lies elsewhere; such images "
                "cannot be used.",
                cause="foreign-layer",
            )
        if layer.media_type not in _LAYER:
            raise UserError(
                f"{what} has a layer of the kind {layer.media_type[:100]!r}, which boxes cannot use.",
                cause="layer-kind",
            )
    if sum(layer.size for layer in manifest.layers) > MAX_UNPACKED:
        raise too_large()
    return manifest


def choose(index: Index, architecture: str, what: str) -> Descriptor:
    """The manifest of `index` for linux on `architecture`; of several, the one for the oldest processors.

    Raises:
        UserError: there is none.
    """
    fitting = [d for d in index.manifests if (d.platform.os, d.platform.architecture) == ("linux", architecture)]
    # x86-64 levels: an emulated CPU has no more than v2.
    usable = sorted(
        (d for d in fitting if d.platform.variant in {"", "v1", "v2"}), key=lambda d: d.platform.variant
    )
    if not usable:
        found = sorted({f"{d.platform.os}/{d.platform.architecture}" for d in index.manifests})
        raise UserError(
            f"{what} is not made for linux/{architecture}, only for {', '.join(found)[:200] or 'nothing'}.",
            cause="platform",
        )
    return usable[0]


def parse_config(data: bytes, manifest: Manifest, architecture: str, what: str) -> Config:
    """The configuration that belongs to `manifest`.

    Raises:
        ProviderError: it is damaged, or does not name each of the layers.
        UserError: it is for another platform.
    """
    config = _checked(Config, _load(data, what), what)
    if (config.os, config.architecture) != ("linux", architecture):
        made = f"{config.os}/{config.architecture}"
        raise UserError(f"{what} is made for {made[:80]}, not for linux/{architecture}.", cause="platform")
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise ProviderError(f"{what} does not say what is in each of its layers.", cause="manifest-damaged")
    return config


def _load(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data) if len(data) <= MAX_DOCUMENT else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ProviderError(f"{what} has a manifest that cannot be read.", cause="manifest-damaged")
    return document


def _checked(kind: type[_T], document: dict[str, Any], what: str) -> _T:
    try:
        return kind.model_validate(document)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ProviderError(
            f"{what} has a damaged manifest (at {where[:80]}: {first['msg'][:120]}).", cause="manifest-damaged"
        ) from None
