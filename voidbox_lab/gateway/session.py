"""Which stage a request belongs to: tokens, what is in flight, and what went wrong last."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from voidbox_lab.errors import VoidboxError
from voidbox_lab.gateway.keys import Keys
from voidbox_lab.spec import Model
from voidbox_lab.spec.events import ModelCall

TOKEN_BYTES = 32


@dataclass(frozen=True)
class StageSession:
    """A stage that may talk to one model. `keys` stay on the host."""

    run: str
    stage: str
    model: Model
    keys: Keys = field(default_factory=Keys)
    metered: Callable[[ModelCall], None] = field(default=lambda _call: None, compare=False, repr=False)
    """For whoever listens to the gateway's calls: whom a call of this stage is for."""


class InFlight(Protocol):
    """A model request on its way."""

    def cancel(self) -> None:
        """End it soon."""

    def report(self) -> None:
        """Have it metered as far as it has come; once."""


@dataclass
class Live:
    """A registered session and its state."""

    session: StageSession
    token_digest: bytes
    in_flight: set[InFlight] = field(default_factory=set)
    """Model requests that have not been metered."""
    landed: anyio.Event = field(default_factory=anyio.Event)
    """Set, and replaced, when one of them has been."""
    calls: int = 0
    """Model requests begun so far."""
    requests: int = 0
    """Requests now, those still being received included."""
    bytes_held: int = 0
    """Bytes of their bodies."""
    values_held: int = 0
    """Values in their bodies."""
    revoked: bool = False
    trouble: VoidboxError | None = None
    """Why the latest model request failed on the host's side; None after one that succeeded."""

    def land(self, request: InFlight) -> None:
        """`request` has been metered."""
        self.in_flight.discard(request)
        self.landed.set()
        self.landed = anyio.Event()

    async def all_landed(self) -> None:
        """Wait until nothing is in flight."""
        while self.in_flight:
            await self.landed.wait()


class Sessions:
    """Tokens to sessions. Holds digests only, so that nothing here can be replayed from a dump."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, Live] = {}

    def add(self, session: StageSession) -> str:
        """Register `session`; returns its token, the only copy."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        digest = _digest(token)
        self._by_digest[digest] = Live(session, digest)
        return token

    def find(self, token: str) -> Live | None:
        """The session `token` belongs to. The table is keyed by digest, so a lookup's time tells nothing."""
        digest = _digest(token)
        live = self._by_digest.get(digest)
        return live if live is not None and hmac.compare_digest(live.token_digest, digest) else None

    def remove(self, token: str) -> Live | None:
        """Forget `token` and cancel what is in flight under it."""
        live = self._by_digest.pop(_digest(token), None)
        if live is not None:
            _end(live)
        return live

    def clear(self) -> None:
        """Forget all tokens and cancel what is in flight."""
        while self._by_digest:
            _end(self._by_digest.popitem()[1])


def _end(live: Live) -> None:
    live.revoked = True
    for request in list(live.in_flight):
        request.cancel()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
