"""The decision table: spellings, kinds of addresses, profiles, names that change their mind."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from voidbox_lab.gateway.egress.addresses import Address, kind, plain
from voidbox_lab.gateway.egress.resolver import Resolver
from voidbox_lab.gateway.egress.rules import Rules, Verdict
from voidbox_lab.gateway.egress.targets import parse_authority, parse_url
from voidbox_lab.spec import Policy

pytestmark = pytest.mark.anyio

NAMES: dict[str, list[str]] = {
    "example.org": ["93.184.216.34", "2606:2800:220:1::1"],
    "pypi.org": ["151.101.0.223"],
    "files.pypi.org": ["151.101.0.223"],
    "notpypi.org": ["151.101.0.223"],
    "inside.example.org": ["10.1.2.3"],
    "both.example.org": ["10.1.2.3", "93.184.216.34"],
    "meta.example.org": ["169.254.169.254"],
    "mapped.example.org": ["::ffff:127.0.0.1"],
    "local.example.org": ["127.0.0.1", "::1"],
    "zero.example.org": ["0.0.0.0"],
    "multi.example.org": ["224.0.0.1", "ff02::1"],
    "scoped.example.org": ["fe80::1%2"],
    "here.example.org": ["93.184.216.1"],
    "xn--bcher-kva.example": ["93.184.216.34"],
}


class Names:
    """A resolver that tells what it was asked."""

    def __init__(self, **answers: list[str]) -> None:
        self.answers = NAMES | answers
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[Address]:
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror("no such name")
        return [ip_address(text) for text in self.answers[host]]


def own(address: Address) -> bool:
    return str(address) == "93.184.216.1"


async def judge(policy: Policy, authority: str, names: Names | None = None) -> Verdict:
    return await Rules(policy, names or Names(), own).judge(parse_authority(authority))


def allow(*egress: str) -> Policy:
    return Policy(network="allowlist", egress=egress)


def proxy_only(*egress: str) -> Policy:
    return Policy(network="proxy-only", egress=egress)


MONITORED, WEB = Policy(network="monitored"), proxy_only()


@pytest.mark.parametrize(
    ("policy", "authority", "what", "rule"),
    [
        (allow("pypi.org:443"), "pypi.org:443", "allowed", "pypi.org:443"),
        (allow("pypi.org"), "PyPI.org.:443", "allowed", "pypi.org"),
        (allow("pypi.org:443"), "pypi.org:80", "denied", "allowlist"),
        (allow("pypi.org:443"), "notpypi.org:443", "denied", "allowlist"),
        (allow("pypi.org:443"), "files.pypi.org:443", "denied", "allowlist"),
        (allow("*.pypi.org:443"), "files.pypi.org:443", "allowed", "*.pypi.org:443"),
        (allow("*.pypi.org:443"), "pypi.org:443", "denied", "allowlist"),
        (allow("*.pypi.org:443"), "notpypi.org:443", "denied", "allowlist"),
        (allow("pypi.org:*"), "pypi.org:8080", "allowed", "pypi.org:*"),
        (allow("*:443"), "example.org:443", "allowed", "*:443"),
        (allow("*:443"), "93.184.216.34:443", "allowed", "*:443"),
        (allow("*:443"), "10.1.2.3:443", "denied", "private-address"),
        (allow("*:443"), "inside.example.org:443", "denied", "private-address"),
        # A name is not its address, nor the other way round.
        (allow("pypi.org:443"), "151.101.0.223:443", "denied", "allowlist"),
        (allow("151.101.0.223:443"), "pypi.org:443", "denied", "allowlist"),
        (allow("151.101.0.0/16:443"), "151.101.0.223:443", "allowed", "151.101.0.0/16:443"),
        (allow("10.0.0.0/8:5432"), "10.1.2.3:5432", "allowed", "10.0.0.0/8:5432"),
        (allow("10.0.0.0/8:5432"), "10.1.2.3:22", "denied", "private-address"),
        (allow("127.0.0.1:8080"), "127.0.0.1:8080", "allowed", "127.0.0.1:8080"),
        (allow("127.0.0.1:8080"), "127.0.0.2:8080", "denied", "private-address"),
        (allow("127.0.0.1:8080"), "[::ffff:127.0.0.1]:8080", "allowed", "127.0.0.1:8080"),
        (allow("[::1]:8080"), "[0:0:0:0:0:0:0:1]:8080", "allowed", "[::1]:8080"),
        # A range of everything names nothing private, and nothing of the host's own.
        (allow("0.0.0.0/0:*", "[::/0]:*"), "93.184.216.34:22", "allowed", "0.0.0.0/0:*"),
        (allow("0.0.0.0/0:*"), "127.0.0.1:22", "denied", "private-address"),
        (allow("0.0.0.0/0:*"), "169.254.169.254:80", "denied", "private-address"),
        (allow("93.184.216.0/24:80"), "93.184.216.1:80", "denied", "private-address"),
        (allow("93.184.216.1:80"), "93.184.216.1:80", "allowed", "93.184.216.1:80"),
        (allow("169.254.169.254:80"), "169.254.169.254:80", "allowed", "169.254.169.254:80"),
        # No policy allows these.
        (allow("0.0.0.0:80"), "0.0.0.0:80", "denied", "private-address"),
        (allow("224.0.0.1:80"), "224.0.0.1:80", "denied", "private-address"),
        (allow("255.255.255.255:80"), "255.255.255.255:80", "denied", "private-address"),
        (allow("[2002:7f00:1::]:80"), "[2002:7f00:1::]:80", "denied", "private-address"),
        # A private address behind a name needs both.
        (allow("inside.example.org:80"), "inside.example.org:80", "denied", "private-address"),
        (allow("inside.example.org:80", "10.1.2.3:80"), "inside.example.org:80", "allowed", "10.1.2.3:80"),
        (allow("local.example.org:80", "127.0.0.1:80"), "local.example.org:80", "allowed", "127.0.0.1:80"),
        (allow("meta.example.org:80"), "meta.example.org:80", "denied", "private-address"),
        (allow("nowhere.example.org:80"), "nowhere.example.org:80", "failed", "nowhere.example.org:80"),
        (allow("xn--bcher-kva.example:443"), "XN--bcher-kva.example:443", "allowed", "xn--bcher-kva.example:443"),
        (MONITORED, "example.org:22", "allowed", "monitored"),
        (MONITORED, "93.184.216.34:22", "allowed", "monitored"),
        (MONITORED, "inside.example.org:443", "denied", "private-address"),
        (MONITORED, "both.example.org:443", "allowed", "monitored"),
        (MONITORED, "mapped.example.org:443", "denied", "private-address"),
        (MONITORED, "scoped.example.org:443", "denied", "private-address"),
        (MONITORED, "zero.example.org:443", "denied", "private-address"),
        (MONITORED, "multi.example.org:443", "denied", "private-address"),
        (MONITORED, "here.example.org:443", "denied", "private-address"),
        (MONITORED, "nowhere.example.org:443", "failed", "monitored"),
        (Policy(network="monitored", egress=("10.1.2.3:22",)), "10.1.2.3:22", "allowed", "10.1.2.3:22"),
        (Policy(network="monitored", egress=("10.1.2.3:22",)), "10.1.2.3:23", "denied", "private-address"),
        (Policy(network="open"), "example.org:22", "allowed", "open"),
        (Policy(network="open"), "10.1.2.3:22", "denied", "private-address"),
        (WEB, "example.org:443", "allowed", "proxy-only"),
        (WEB, "example.org:80", "allowed", "proxy-only"),
        (WEB, "example.org:22", "denied", "proxy-only"),
        (WEB, "93.184.216.34:8080", "denied", "proxy-only"),
        (WEB, "10.1.2.3:80", "denied", "private-address"),
        (proxy_only("10.1.2.3:5432"), "inside.example.org:5432", "allowed", "10.1.2.3:5432"),
    ],
)  # fmt: skip
async def test_decisions(policy: Policy, authority: str, what: str, rule: str) -> None:
    """Who may go where, and which rule says so."""
    verdict = await judge(policy, authority)
    assert (verdict.what, verdict.rule) == (what, rule)
    assert bool(verdict.reason) is (what != "allowed")
    assert "\n" not in verdict.reason


async def test_only_addresses_that_were_allowed_are_connected_to() -> None:
    """Of a name that is here and there, the part that may be reached; without doubles."""
    assert (await judge(MONITORED, "both.example.org:443")).addresses == (ip_address("93.184.216.34"),)
    names = Names(twice=["93.184.216.34", "::ffff:93.184.216.34"])
    assert (await judge(MONITORED, "twice:443", names)).addresses == (ip_address("93.184.216.34"),)


async def test_a_name_is_resolved_once_and_only_if_it_may_matter() -> None:
    """A look-up tells the name's owner something: none for a name that no pattern allows."""
    names = Names()
    for policy in (allow("pypi.org:443"), allow("10.0.0.0/8:443"), WEB):
        assert (await judge(policy, "secret.attacker.example:444", names)).what == "denied"
    assert (await judge(allow("pypi.org:443"), "secret.attacker.example:443", names)).what == "denied"
    assert names.asked == []
    await judge(MONITORED, "example.org:443", names)
    assert names.asked == ["example.org"]


async def test_a_refusal_says_what_to_do_and_not_what_the_host_knows() -> None:
    """The guest is told the rule; the address of an internal name is for the record alone."""
    verdict = await judge(allow("pypi.org:443"), "example.org:443")
    assert verdict.reason == (
        "example.org:443 is not in this stage's egress allowlist; add it to the policy's egress"
    )
    verdict = await judge(MONITORED, "inside.example.org:443")
    assert "a private address" in verdict.reason
    assert "10.1.2.3" not in verdict.reason
    assert verdict.addresses == (ip_address("10.1.2.3"),)
    assert "which no policy allows" in (await judge(MONITORED, "0.0.0.0:80")).reason


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
        *("168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192"),
        *("192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
        *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::7f00:1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::7f00:1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:db8::1", "2002:7f00:1::1"),
        *("2002:5db8:d822::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1"),
    ],
)
def test_not_public(address: str) -> None:
    """Private, special, or a wrapping of what may be either."""
    assert kind(plain(ip_address(address))) is not None


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::5db8:d822"]
)
def test_public(address: str) -> None:
    """The neighbours of what is not."""
    assert kind(plain(ip_address(address))) is None


def test_a_mapped_address_is_the_one_it_maps() -> None:
    """Also with a scope."""
    assert plain(ip_address("::ffff:10.0.0.1")) == ip_address("10.0.0.1")
    assert plain(ip_address("fe80::1%eth0")) == ip_address("fe80::1")


async def test_what_may_be_the_hosts_own_is_refused() -> None:
    """Where the kernel does not tell, only an address that the policy names."""

    def mute(_: Address) -> bool:
        raise PermissionError

    async def told(policy: Policy) -> Verdict:
        return await Rules(policy, Names(), mute).judge(parse_authority("93.184.216.34:443"))

    refused = await told(Policy(network="monitored"))
    assert (refused.what, refused.rule) == ("denied", "private-address")
    assert "may be the host's own" in refused.reason
    assert (await told(allow("93.184.0.0/16:443"))).what == "denied"
    assert (await told(allow("93.184.216.34:443"))).what == "allowed"


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "host", "host:", "host:0", "host:65536", "host:80x", "host:-1", "host:+80", "host: 80"),
        *("0x7f.1:80", "0x7f000001:80", "2130706433:80", "127.1:80", "0177.0.0.1:80", "127.0.0.01:80"),
        *("1.2.3.4.5:80", "256.1.1.1:80", "1.2.3.0x4:80", "foo.1:80", "foo.0x:80", "127.0.0.1..:80"),
        *("[127.0.0.1]:80", "[::1:80", "::1:80", "[fe80::1%25eth0]:80", "[fe80::1%eth0]:80", "[::g]:80"),
        *("user@host:80", "user:pw@host:80", "host:80@other:80", "ho st:80", "host/path:80", "host\\other:80"),
        *("bücher.example:80", "a..b:80", ".host:80", "host..:80", "-host:80", "host-:80", "ho%73t:80", "*:80"),
        *("host\x00:80", "host\n:80", "http://host:80", "x" * 64 + ":80", "a." * 127 + "aa:80"),
    ],
)
def test_odd_authorities_are_refused(text: str) -> None:
    """With a sentence, and never by guessing."""
    with pytest.raises(ValueError, match="the target"):
        parse_authority(text)


def test_urls() -> None:
    """What of an absolute URL goes where."""
    assert parse_url("http://Example.ORG/a?b=http://x@y") == (parse_authority("example.org:80"), "/a?b=http://x@y")
    assert parse_url("HTTP://[::1]:8080?q") == (parse_authority("[::1]:8080"), "/?q")
    assert str(parse_url("http://[::1]:8080")[0]) == "[::1]:8080"
    for bad in (
        "/path",
        "*",
        "https://host/",
        "ftp://host/",
        "http://",
        "http://u@host/",
        "http:///x",
        "http://h/#f",
    ):
        with pytest.raises(ValueError, match=r"^th(e target|is is a proxy)"):
            parse_url(bad)


async def test_the_hosts_own_resolver() -> None:
    """What a name of this host's hosts file stands for."""
    resolver = Resolver()
    try:
        assert ip_address("127.0.0.1") in await resolver("localhost")
        with pytest.raises(OSError):  # noqa: PT011 - the errors of resolvers are many
            await resolver("no-such-name.invalid")
    finally:
        resolver.close()
