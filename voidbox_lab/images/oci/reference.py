"""References to OCI images: ``[REGISTRY/]REPOSITORY[:TAG][@sha256:DIGEST]``, and what is meant where parts lack.

The rules are those of distribution's reference package: a first part is a registry when it holds a dot, a colon
or a capital letter, or is ``localhost``; without one Docker's is meant, and there ``library/`` where
the repository has one part.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

from voidbox_lab.errors import UserError
from voidbox_lab.spec.packages import check_reference

DOCKER = "docker.io"


@dataclass(frozen=True)
class Reference:
    """One image in one registry. Exactly one of `tag` and `digest` decides; with both it is the digest."""

    registry: str
    """``HOST`` or ``HOST:PORT``."""
    repository: str
    tag: str | None
    digest: str | None
    """``sha256:<hex>`` of the manifest, or of the index of manifests for several platforms."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference that `text` is; without tag and digest its tag is ``latest``.

        Raises:
            UserError: it is none.
        """
        try:
            rest, _, digest = check_reference(text).partition("@")
        except ValueError as error:
            raise UserError(f"{error}.", cause="reference") from None
        head, slash, tail = rest.partition("/")
        named = bool(slash) and ("." in head or ":" in head or head == "localhost" or head != head.lower())
        registry, path = (head, tail) if named else (DOCKER, rest)
        path, _, tag = path.partition(":")
        if registry in {DOCKER, "index.docker.io"}:
            registry, path = DOCKER, path if "/" in path else f"library/{path}"
        return cls(registry, path, tag or (None if digest else "latest"), digest or None)

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}{f':{self.tag}' if self.tag else ''}" + (
            f"@{self.digest}" if self.digest else ""
        )

    @property
    def source(self) -> str:
        """As skopeo wants it, which takes a tag or a digest and not both."""
        last = f"@{self.digest}" if self.digest else f":{self.tag}"
        return f"docker://{self.registry}/{self.repository}{last}"

    @property
    def image_name(self) -> str:
        """A name for the image made of it: readable, and no other reference's."""
        digest = hashlib.sha256(str(self).encode()).hexdigest()[:8]
        words = f"{self.repository.rpartition('/')[2]}-{self.tag or 'pinned'}".lower()
        return f"oci-{re.sub('[^a-z0-9.]+', '-', words)[:26].strip('-.')}-{digest}"

    def at(self, digest: str) -> Reference:
        """What `digest` is in the same repository."""
        return replace(self, tag=None, digest=digest)
