"""What is known of images that were pulled: documents, layers as they came, and which digest a tag had.

    <cache>/oci/blobs/sha256/<hex>       manifests, configurations, layers
    <cache>/oci/references/<hex>.json    reference and platform to the digests of manifest and configuration

A tag is asked for once and then stays what it was, until it is pulled again. A blob is what its digest says
whenever it is read; layers may go once they are squashfs, and come back by digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.images.oci import transport
from voidbox_lab.images.oci.manifest import Config, Index, Manifest, choose, parse, parse_config
from voidbox_lab.images.oci.reference import Reference
from voidbox_lab.images.store import Store, is_digest, write
from voidbox_lab.settings import Settings
from voidbox_lab.spec.digest import canonical_json, digest_bytes, digest_file

SLACK = 32 << 20
"""Bytes that a pull may have on disk beside its layers: manifest, configuration, directories."""


@dataclass(frozen=True)
class Pulled:
    """One image for one platform, known in full; its layers may have to be fetched."""

    reference: Reference
    digest: str
    """Of what the tag pointed to: an index, or `manifest_digest` itself."""
    manifest_digest: str
    manifest: Manifest
    config: Config


class OciCache:
    """The OCI part of an image cache. Blocking throughout; `pull` and `layers` want the store's lock held."""

    def __init__(self, settings: Settings, architecture: str) -> None:
        self._settings, self._architecture = settings, architecture
        self.root = Store(settings.cache).root / "oci"
        self._blobs = self.root / "blobs"

    def find(self, reference: Reference) -> Pulled | None:
        """`reference` as it was pulled last, without any network; None if it was not, or is damaged."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, ProviderError):
            record = json.loads(self._record(reference).read_bytes())
            return self._known(reference, record["digest"], record["manifest"])
        return None

    def pull(self, reference: Reference) -> Pulled:
        """Ask the registry what `reference` is now, and remember it. Layers stay where they are.

        Raises:
            UserError: there is no such image, none for this platform, or none that a box could use.
            Unavailable: skopeo is missing; the registry refuses or cannot be reached.
            ProviderError: what came is not what its digest says.
        """
        what = str(reference)
        data = transport.manifest(self._settings, reference)
        digest = digest_bytes(data)
        if reference.digest and digest != reference.digest:
            raise _differs(what)
        manifest_digest, document = digest, parse(data, what)
        if isinstance(document, Index):
            manifest_digest = choose(document, self._architecture, what).digest
            data = transport.manifest(self._settings, reference.at(manifest_digest))
            if digest_bytes(data) != manifest_digest:
                raise _differs(what)
            document = parse(data, what)
        if isinstance(document, Index):
            raise ProviderError(f"{what} is an index of indexes.", cause="manifest-damaged")
        said = transport.config(self._settings, reference.at(manifest_digest))
        if digest_bytes(said) != document.config.digest:
            raise _differs(what)
        parse_config(said, document, self._architecture, what)
        write(self.blob(manifest_digest), data)
        write(self.blob(document.config.digest), said)
        write(self._record(reference), canonical_json({
            "reference": what, "digest": digest, "manifest": manifest_digest,
        }))  # fmt: skip
        return self._known(reference, digest, manifest_digest)

    def layers(self, pulled: Pulled) -> list[Path]:
        """The files of all layers, from bottom to top, fetched where they lack.

        Raises:
            Unavailable, UserError: as `pull`.
            ProviderError: a layer is not what its digest says.
            LimitExceeded: more than the manifest says was sent.
        """
        paths = [self.blob(layer.digest) for layer in pulled.manifest.layers]
        wanted = list(zip(pulled.manifest.layers, paths, strict=True))
        if any(not path.is_file() or path.stat().st_size != layer.size for layer, path in wanted):
            with Store(self._settings.cache).workspace() as directory:
                source, layout = pulled.reference.at(pulled.manifest_digest), directory / "layout"
                watch = partial(_watch, pulled, [layout, *paths])
                transport.copy(self._settings, source, layout, self._blobs, watch)
        for layer, path in wanted:
            if not path.is_file() or digest_file(path) != layer.digest:
                path.unlink(missing_ok=True)
                raise _differs(f"A layer of {pulled.reference}")
            if path.stat().st_size != layer.size:
                raise ProviderError(f"{pulled.reference} is wrong about its size.", cause="manifest-damaged")
        return paths

    def blob(self, digest: str) -> Path:
        """Where the blob with `digest` lies, or would lie."""
        if not is_digest(digest):
            raise ProviderError("A record of the OCI cache is damaged; pull the image again.", cause="cache")
        return self._blobs / "sha256" / digest.removeprefix("sha256:")

    def _known(self, reference: Reference, digest: str, manifest_digest: str) -> Pulled:
        manifest = parse(self._read(manifest_digest), str(reference))
        if not isinstance(manifest, Manifest):
            raise _differs(str(reference))
        data = self._read(manifest.config.digest)
        config = parse_config(data, manifest, self._architecture, str(reference))
        return Pulled(reference, digest, manifest_digest, manifest, config)

    def _read(self, digest: str) -> bytes:
        data = self.blob(digest).read_bytes()
        if digest_bytes(data) != digest:
            raise _differs("A record of the OCI cache")
        return data

    def _record(self, reference: Reference) -> Path:
        key = hashlib.sha256(f"{reference} {self._architecture}".encode()).hexdigest()
        return self.root / "references" / f"{key}.json"


def _watch(pulled: Pulled, places: Sequence[Path]) -> None:
    """Look at what was fetched so far: nobody else compares it with what was announced until it is whole."""
    announced = sum(layer.size for layer in pulled.manifest.layers)
    found = 0
    for place in places:
        for path in (place, *place.glob("*")):
            with contextlib.suppress(OSError):
                found += path.stat().st_size
    if found > announced + SLACK:
        raise LimitExceeded(
            f"{pulled.reference} sends more than the {announced} bytes that it says it has; it was refused.",
            limit="disk", value=announced, unit="bytes", cause="image-size",
        )  # fmt: skip


def _differs(what: str) -> ProviderError:
    return ProviderError(f"{what} is not what its digest says; it was thrown away.", cause="digest-mismatch")
