"""The errors of voidbox-lab, one tree, drawn once.

    VoidboxError
    ├── UserError            what was asked cannot be done as asked
    ├── ProviderError        the host's side failed: libvirt, QEMU, an image, a model provider
    │   ├── Unavailable      something this machine lacks; the message names it and its fix
    │   └── BoxLost          a box that ran is gone: guest panic, guest agent dead, QEMU killed
    ├── CommandFailed        a guest command ended badly where success was required
    ├── LimitExceeded        a bound was hit: time, memory, disk, tokens, dollars, message size
    └── Cancelled            somebody asked for the end

A guest command that exits 1 is a result, not an exception; `CommandFailed` is raised only where
the caller required success (an agent CLI that must deliver an answer, ``check=True``).

Messages are one sentence: what, where, what to do. `to_dict` and `from_dict` carry an error across
the daemon's API without losing its kind.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

TroubleKind = Literal["user", "provider", "command", "limit", "cancelled"]


class VoidboxError(Exception):
    """Root of every error this package raises on purpose. `kind` is its place among the five."""

    kind: ClassVar[TroubleKind] = "provider"

    def __init__(self, message: str, *, cause: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        """A short machine-readable cause, e.g. ``guest-panic`` or ``timeout``; stable across releases."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: ``{"kind", "type", "message", "cause", ...}``."""
        return {"kind": self.kind, "type": type(self).__name__, "message": self.message, "cause": self.cause}


class UserError(VoidboxError):
    """An unknown name, a missing file, a value out of range: the user can mend it."""

    kind = "user"


class ProviderError(VoidboxError):
    """The host's side failed; nothing the guest did and nothing the user wrote."""

    kind = "provider"


class Unavailable(ProviderError):
    """This machine lacks something (QEMU, libvirt, an image). The only error that may skip a VM test."""


class BoxLost(ProviderError):
    """A running box is gone. `cause` is one of ``guest-panic``, ``guest-agent-died``, ``qemu-died``,
    ``vsock-died``, ``libvirt-lost``, ``internal``."""


class CommandFailed(VoidboxError):
    """A guest command ended with a status other than success where success was required."""

    kind = "command"

    def __init__(self, message: str, *, exit_code: int | None = None, cause: str | None = None) -> None:
        super().__init__(message, cause=cause)
        self.exit_code = exit_code

    def to_dict(self) -> dict[str, Any]:
        """As in the root, with ``exit_code``."""
        return super().to_dict() | {"exit_code": self.exit_code}


class LimitExceeded(VoidboxError):
    """A bound was hit.

    `limit` names it (``time``, ``memory``, ``disk``, ``tokens``, ``usd``, ``frame``), `value` is the
    bound in `unit`, and `source` says who set it (``stage``, ``policy``, ``default``).
    """

    kind = "limit"

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        value: float | None = None,
        unit: str = "",
        source: str = "default",
        cause: str | None = None,
    ) -> None:
        super().__init__(message, cause=cause or limit)
        self.limit, self.value, self.unit, self.source = limit, value, unit, source

    def to_dict(self) -> dict[str, Any]:
        """As in the root, with ``limit``, ``value``, ``unit`` and ``source``."""
        return super().to_dict() | {
            "limit": self.limit,
            "value": self.value,
            "unit": self.unit,
            "source": self.source,
        }


class Cancelled(VoidboxError):
    """A user, a signal or a shutting daemon asked for the end of a run, stage or command."""

    kind = "cancelled"


_BY_KIND: dict[str, type[VoidboxError]] = {
    "user": UserError,
    "provider": ProviderError,
    "cancelled": Cancelled,
}


def from_dict(data: dict[str, Any]) -> VoidboxError:
    """The inverse of `VoidboxError.to_dict`; an unknown type falls back to its kind's class."""
    kind, message, cause = data.get("kind"), str(data.get("message", "unknown error")), data.get("cause")
    if kind == "limit":
        return LimitExceeded(
            message,
            limit=str(data.get("limit") or cause or "unknown"),
            value=data.get("value"),
            unit=str(data.get("unit") or ""),
            source=str(data.get("source") or "default"),
            cause=cause,
        )
    if kind == "command":
        return CommandFailed(message, exit_code=data.get("exit_code"), cause=cause)
    named = {c.__name__: c for c in (Unavailable, BoxLost)}.get(str(data.get("type")))
    return (named or _BY_KIND.get(str(kind), ProviderError))(message, cause=cause)
