"""What all spec models share: frozen, closed, digestible."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from voidbox_lab.spec.digest import digest_json

_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?")


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name: use 1 to 64 of a-z, 0-9, '-' and '_', with a letter or digit at both ends"
        )
    return value


Name = Annotated[str, AfterValidator(_check_name)]
"""A name of a skill, stage or run: safe in a file name, a domain name and HTML."""


class Frozen(BaseModel):
    """Base of everything immutable and closed: no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Spec(Frozen):
    """Base of every spec model: `Frozen`, with a digest of its own."""

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the canonical JSON of this spec."""
        return digest_json(self.model_dump(mode="json"))
