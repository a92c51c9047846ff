"""What kind of address one is: public, or which kind that is not. Not for names, nor for what a policy allows.

Sources: the IANA special-purpose address registries (RFC 6890 and its successors), RFC 6052 (NAT64), RFC 3056
(6to4), RFC 4380 (Teredo), RFC 4291. What is not certainly public is not public.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network

from voidbox_lab.spec.egress import IpNetwork

Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Kind:
    """A range that is not public."""

    words: str
    """Such as ``a private address``."""
    block: IpNetwork | None
    """The range; None: the single address asked about."""
    ever: bool = True
    """Whether a policy may allow it."""


def _kinds(*rows: tuple[str, str, bool]) -> tuple[Kind, ...]:
    return tuple(Kind(words, ip_network(block), ever) for block, words, ever in rows)


_V4 = _kinds(
    ("0.0.0.0/8", "an unspecified address", False),
    ("10.0.0.0/8", "a private address", True),
    ("100.64.0.0/10", "a shared address of a provider (RFC 6598)", True),
    ("127.0.0.0/8", "a loopback address", True),
    # Azure's, reachable from its virtual machines only.
    ("168.63.129.16/32", "a cloud's metadata address", True),
    ("169.254.0.0/16", "a link-local address, such as a cloud's metadata", True),
    ("172.16.0.0/12", "a private address", True),
    ("192.0.0.0/24", "an address of a protocol", True),
    ("192.0.2.0/24", "an address for documentation", True),
    ("192.88.99.0/24", "a 6to4 relay", False),
    ("192.168.0.0/16", "a private address", True),
    ("198.18.0.0/15", "an address for benchmarks", True),
    ("198.51.100.0/24", "an address for documentation", True),
    ("203.0.113.0/24", "an address for documentation", True),
    ("224.0.0.0/4", "a multicast address", False),
    ("240.0.0.0/4", "a reserved or broadcast address", False),
)
_V6 = _kinds(
    ("::/128", "an unspecified address", False),
    ("::1/128", "a loopback address", True),
    ("2001:db8::/32", "an address for documentation", True),
    ("2001::/32", "a Teredo address, which stands for an IPv4 address", False),
    ("2001::/23", "an address of a protocol", False),
    ("2002::/16", "a 6to4 address, which stands for an IPv4 address", False),
    ("3fff::/20", "an address for documentation", True),
    ("fc00::/7", "a private address", True),
    ("fe80::/10", "a link-local address", True),
    ("fec0::/10", "a site-local address", True),
    ("ff00::/8", "a multicast address", False),
)
_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")


def plain(address: Address) -> Address:
    """`address` as a connection to it would be made: an IPv4-mapped one is IPv4, a scope is left out."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def kind(address: Address) -> Kind | None:
    """Which kind of address that is not public `address`, a plain one, is; None for a public one."""
    for each in _V4 if isinstance(address, IPv4Address) else _V6:
        if each.block is not None and address in each.block:
            return each
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            inner = kind(IPv4Address(int(address) & 0xFFFFFFFF))
            return None if inner is None else Kind(f"{inner.words} through NAT64", None, inner.ever)
        if address not in _GLOBAL_UNICAST:
            return Kind("an address that is not global unicast", None, ever=False)
    # What Python's copy of the registries knows beyond this table.
    return None if address.is_global else Kind("an address that is not public", None)
