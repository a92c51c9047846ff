"""Patterns of hosts and ports: what may be written, and what each stands for."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.spec import Policy, parse_destination, validated


@pytest.mark.parametrize(
    ("pattern", "host", "port", "named"),
    [
        ("pypi.org", "pypi.org", 443, True),
        ("pypi.org", "pypi.org", 80, False),
        ("PyPI.org:443", "PYPI.ORG.", 443, True),
        ("pypi.org:*", "pypi.org", 22, True),
        ("pypi.org", "files.pypi.org", 443, False),
        ("*.pypi.org", "files.pypi.org", 443, True),
        ("*.pypi.org", "a.b.pypi.org", 443, True),
        ("*.pypi.org", "pypi.org", 443, False),
        ("*.pypi.org", "evilpypi.org", 443, False),
        ("*.pypi.org", ".pypi.org", 443, False),
        ("*:443", "anything.example", 443, True),
        ("*:443", "anything.example", 80, False),
        # A name never stands for an address, nor an address for a name.
        ("10.0.0.1:80", "10.0.0.1", 80, False),
    ],
)
def test_names(pattern: str, host: str, port: int, named: bool) -> None:
    """By name, in any case, with or without the root's dot."""
    assert parse_destination(pattern).names(host, port) is named


@pytest.mark.parametrize(
    ("pattern", "address", "port", "covered"),
    [
        ("10.0.0.0/8:5432", "10.1.2.3", 5432, True),
        ("10.0.0.0/8:5432", "10.1.2.3", 5433, False),
        ("10.0.0.0/8:*", "11.0.0.1", 5432, False),
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("127.0.0.1:8080", "127.0.0.2", 8080, False),
        ("[::1]:8080", "::1", 8080, True),
        ("[fd00::/8]", "fd00::1", 443, True),
        ("*:443", "10.0.0.1", 443, False),
        ("localhost:80", "127.0.0.1", 80, False),
    ],
)
def test_addresses(pattern: str, address: str, port: int, covered: bool) -> None:
    """An address must be named as one."""
    assert parse_destination(pattern).covers(ip_address(address), port) is covered


@pytest.mark.parametrize(
    "text",
    [
        "", "https://pypi.org", "pypi.org/simple", "pypi.org:0", "pypi.org:65536", "pypi.org:x", "a:443:443",
        "user@pypi.org", "*.*.org", "*pypi.org", "py*.org", "256.1.1.1", "10.0.0", "[::1", "::1", "a b", "-a.org",
        "a..org",
    ],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    """A sentence that shows how it is written."""
    with pytest.raises(ValueError, match=r"write pypi\.org:443"):
        parse_destination(text)


def test_a_policy_says_what_it_means() -> None:
    """Hosts without a profile that lets them through, and the profile without hosts, are mistakes."""
    with pytest.raises(UserError, match="set network to 'allowlist'"):
        validated(Policy, egress=("pypi.org",))
    with pytest.raises(UserError, match="names no host"):
        validated(Policy, network="allowlist")
    assert Policy(network="allowlist", egress=("PyPI.org:443",)).egress == ("pypi.org:443",)
