"""Fetches from registries with skopeo, which knows their protocol and their ways to sign in.

Credentials are skopeo's own business: its auth file (``skopeo login``, ``docker login``, REGISTRY_AUTH_FILE),
which is read by skopeo alone. A registry is spoken to in plain HTTP, or with a certificate that nobody vouches
for, only on this machine or where the settings name it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from voidbox_lab.errors import ProviderError, Unavailable, UserError
from voidbox_lab.images import tools
from voidbox_lab.images.oci.manifest import MAX_DOCUMENT
from voidbox_lab.images.oci.reference import Reference
from voidbox_lab.settings import Settings, is_loopback

PURPOSE = "an OCI image is fetched"
INSPECT_TIMEOUT_S = 120.0
COPY_TIMEOUT_S = 3600.0
_POLICIES = (Path.home() / ".config/containers/policy.json", Path("/etc/containers/policy.json"))
"""Where an administrator may demand signatures (containers-policy.json(5))."""


def manifest(settings: Settings, reference: Reference) -> bytes:
    """The manifest or index behind `reference`, as the registry has it.

    Raises:
        UserError: there is no such image.
        Unavailable: skopeo is missing; the registry refuses or cannot be reached.
        LimitExceeded: it took too long.
    """
    return _inspect(settings, reference, "--raw")


def config(settings: Settings, reference: Reference) -> bytes:
    """The configuration of the image behind `reference`, a digest's. Raises as `manifest`."""
    return _inspect(settings, reference, "--config", "--raw")


def copy(settings: Settings, reference: Reference, layout: Path, blobs: Path, watch: Callable[[], None]) -> None:
    """Bring the layers of `reference`, the digest of one manifest, into ``blobs/sha256/<hex>``.

    `layout` becomes an OCI layout (image-layout.md) without its blobs, but for those that are on their way; layers
    that are in `blobs` already are not fetched again. Raises as `manifest`, and whatever `watch` does meanwhile.
    """
    blobs.mkdir(parents=True, exist_ok=True)
    secure = "--src-tls-verify=false" if _is_plain(settings, reference) else "--src-tls-verify=true"
    # Else a layer that comes uncompressed would be compressed, and be another blob.
    plain = "--dest-oci-accept-uncompressed-layers"
    command = ["copy", "--quiet", secure, plain, "--dest-shared-blob-dir", str(blobs)]
    command += [reference.source, f"oci:{layout}:it"]
    _skopeo(command, COPY_TIMEOUT_S, reference, watch)


def _inspect(settings: Settings, reference: Reference, *options: str) -> bytes:
    secure = "--tls-verify=false" if _is_plain(settings, reference) else "--tls-verify=true"
    printed = _skopeo(["inspect", *options, secure, reference.source], INSPECT_TIMEOUT_S, reference)
    if len(printed) > MAX_DOCUMENT:
        raise ProviderError(f"{reference} has a manifest of {len(printed)} bytes.", cause="manifest-damaged")
    return printed


def _is_plain(settings: Settings, reference: Reference) -> bool:
    host = reference.registry.rpartition(":")[0] or reference.registry
    return is_loopback(host) or reference.registry in settings.insecure_registries


def _skopeo(
    arguments: list[str], timeout_s: float, reference: Reference, watch: Callable[[], None] | None = None
) -> bytes:
    policy = () if any(path.is_file() for path in _POLICIES) else ("--insecure-policy",)
    try:
        return tools.run(["skopeo", *policy, *arguments], timeout_s=timeout_s, purpose=PURPOSE, watch=watch)
    except ProviderError as error:
        if isinstance(error, Unavailable):
            raise
        raise _meant(error, reference) from error


def _meant(error: ProviderError, reference: Reference) -> UserError | Unavailable:
    """What a registry's refusal means for whoever asked for `reference`."""
    said = error.message.rpartition(" as an OCI image is fetched: ")[2]
    said = said.rpartition('level=fatal msg="')[2].rstrip('"')[-400:]
    low = said.lower()
    if "manifest unknown" in low or "name unknown" in low or "not found" in low:
        return UserError(
            f"There is no image {reference} in its registry; check its name and tag.", cause="image-unknown"
        )
    if any(word in low for word in ("unauthorized", "authentication required", "denied", "invalid username")):
        return Unavailable(
            f"The registry {reference.registry} does not hand out {reference} to you; sign in with "
            f"`skopeo login {reference.registry}`, or check the name.",
            cause="registry-denied",
        )
    if "server gave http response to https client" in low:
        return Unavailable(
            f"The registry {reference.registry} speaks plain HTTP; name it in VOIDBOX_INSECURE_REGISTRIES if you "
            "trust the network between.",
            cause="registry-insecure",
        )
    return Unavailable(
        f"{reference} could not be fetched ({said}); check the network and the registry, then try again.",
        cause="registry",
    )
