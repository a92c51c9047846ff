"""Where a request wants to go: authorities and URLs as a proxy hears them. Strict: an odd spelling is refused.

Sources: RFC 9112 section 3.2 (forms of request targets), RFC 3986 section 3.2, RFC 952 and 1123 (host names).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from voidbox_lab.gateway.egress.addresses import Address, plain

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label of this form makes the host an IPv4 address to most software (WHATWG URL, "ends in a number")."""
_AUTHORITY = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")
_URL = re.compile(r"http://(?P<authority>[^/?#]*)(?P<rest>[/?][^#]*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """A host and a port."""

    host: str
    """In lower case, without a final dot; an address in its canonical form, without brackets."""
    port: int
    address: Address | None = None
    """If the host was given as an address."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_authority(text: str, default_port: int | None = None) -> Target:
    """``HOST:PORT``; HOST is a name, an IPv4 address of four decimal numbers, or an IPv6 address in brackets.

    Raises:
        ValueError: it is not, with a sentence for the guest. Addresses in other notations (``0x7f.1``,
            ``2130706433``), scopes, user names and percent-encoding are all not.
    """
    found = _AUTHORITY.fullmatch(text)
    refusal = ValueError("the target is not HOST:PORT with a plain host name or address")
    if not found:
        raise refusal
    port = int(found["port"]) if found["port"] else default_port
    if port is None or not 1 <= port <= 65535:
        raise ValueError("the target has no port between 1 and 65535")
    try:
        if found["six"]:
            return _address(ipaddress.IPv6Address(found["six"]), port)
        host = found["host"].lower().removesuffix(".")
        if _NUMERIC.fullmatch(host.rpartition(".")[2]):
            return _address(ipaddress.IPv4Address(host), port)
    except ValueError:
        raise ValueError("the target's address is not in the usual notation, such as 192.0.2.1") from None
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise refusal
    return Target(host, port)


def parse_url(text: str) -> tuple[Target, str]:
    """Target and origin form (path and query) of an absolute ``http://`` URL.

    Raises:
        ValueError: it is none, with a sentence for the guest.
    """
    found = _URL.fullmatch(text)
    if not found:
        raise ValueError("this is a proxy: it takes CONNECT HOST:PORT and absolute http:// URLs")
    rest = found["rest"] or "/"
    return parse_authority(found["authority"], 80), rest if rest.startswith("/") else f"/{rest}"


def _address(address: Address, port: int) -> Target:
    address = plain(address)
    return Target(str(address), port, address)
