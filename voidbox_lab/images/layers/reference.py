"""References to packages, taken apart: ``deb:jq``, ``pypi:NAME==VERSION``, ``npm:@SCOPE/NAME@VERSION``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pydantic

from voidbox_lab.errors import UserError
from voidbox_lab.spec.packages import Package

KindName = Literal["deb", "npm", "pypi", "runtime"]
_PACKAGE: pydantic.TypeAdapter[str] = pydantic.TypeAdapter(Package)


@dataclass(frozen=True, order=True)
class Reference:
    """One package that was asked for."""

    kind: KindName
    name: str
    version: str | None = None
    """None: the newest when it is planned."""

    def __str__(self) -> str:
        between = {"deb": "=", "npm": "@", "pypi": "==", "runtime": "@"}[self.kind]
        return f"{self.kind}:{self.name}" + (f"{between}{self.version}" if self.version else "")


def parse(text: str) -> Reference:
    """`text` as a reference. Names of PyPI come out normalized (PEP 503), so that each has one.

    Raises:
        UserError: it is none.
    """
    try:
        _PACKAGE.validate_python(text)
    except pydantic.ValidationError as error:
        raise UserError(f"{error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None
    kind, _, rest = text.partition(":")
    if kind == "deb":
        name, _, version = rest.partition("=")
        return Reference("deb", name, version or None)
    if kind == "pypi":
        name, _, version = rest.partition("==")
        return Reference("pypi", normalized(name), version or None)
    scope = rest.startswith("@")
    name, _, version = rest.removeprefix("@").partition("@")
    return Reference("npm", f"@{name}" if scope else name, version or None)


def normalized(name: str) -> str:
    """A Python project's name as indexes have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
