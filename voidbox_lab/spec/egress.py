"""Ways out of a box besides its model: profiles, and patterns of hosts and ports. Not for letting anything out."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from voidbox_lab.spec.base import Spec

Network = Literal["none", "allowlist", "monitored", "proxy-only", "open"]
"""``none``: no way out. ``allowlist``: to what `Policy.egress` names. ``monitored``: to every public address.
``proxy-only``: HTTP and HTTPS (ports 80 and 443) to every public address. All of these through a proxy on the
host, over vsock, with an audit event for each connection, and no names resolved in the guest. ``open``: as
``monitored``, for programs as well that know of no proxy; there is no network card."""

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
DEFAULT_PORT = 443
MAX_PATTERNS = 256
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*\.?")


@dataclass(frozen=True)
class Destination:
    """A pattern, taken apart. Names match by name, addresses by address: a name never stands for an address."""

    host: str | None
    """In lower case without a final dot; ``*.example.org`` for all below it; None: any."""
    network: IpNetwork | None
    """Instead of a name: an address, or a range of them."""
    port: int | None
    """None: any."""

    def names(self, host: str, port: int) -> bool:
        """Whether it is the name `host` at `port`."""
        if self.network is not None or self.port not in {None, port}:
            return False
        host = host.lower().rstrip(".")
        if self.host is None or self.host == host:
            return True
        return self.host.startswith("*.") and host.endswith(self.host[1:]) and len(host) > len(self.host) - 1

    def covers(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
        """Whether it is a range that `address` is in, at `port`."""
        return self.network is not None and self.port in {None, port} and address in self.network


def parse_destination(text: str) -> Destination:
    """``HOST``, ``HOST:PORT``, ``HOST:*`` or ``*:PORT``; HOST is a name, ``*.name``, an address, ``[IPv6]``, or a
    range such as ``10.0.0.0/8``. Without a port: 443.

    Raises:
        ValueError: it is none of these.
    """
    refusal = ValueError(
        f"{text[:100]!r} is not HOST:PORT; write pypi.org:443, *.example.org:443, 10.0.0.0/8:5432, or [::1]:8080"
    )
    host, port = text.strip().lower(), str(DEFAULT_PORT)
    if host.startswith("["):
        host, closed, rest = host[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise refusal
        port = rest[1:] if rest else port
    elif ":" in host:
        host, _, port = host.rpartition(":")
    number = None if port == "*" else int(port) if re.fullmatch(r"[0-9]{1,5}", port) else 0
    if number is not None and not 1 <= number <= 65535:
        raise refusal
    if host == "*":
        return Destination(None, None, number)
    try:
        return Destination(None, ipaddress.ip_network(host, strict=False), number)
    except ValueError:
        # Only digits and dots: a mistyped address, not a name.
        if not _HOST.fullmatch(host) or len(host) > 253 or re.fullmatch(r"[0-9.]+", host):
            raise refusal from None
    return Destination(host.rstrip("."), None, number)


def _checked(text: str) -> str:
    parse_destination(text)
    return text.strip().lower()


EgressPattern = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_checked)]
"""See `parse_destination`."""


class EgressLimits(Spec):
    """Bounds on a stage's connections through the proxy."""

    connections: int = Field(32, ge=1, le=256)
    """At once."""
    per_minute: int = Field(600, ge=1, le=100_000)
    """New ones in a minute."""
    mb: int = Field(1024, ge=1, le=1 << 20)
    """MiB in both directions, of all connections of the stage together."""
