"""The host's own addresses, as its kernel tells them: here, and in a network namespace with secondary ones."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

import voidbox_lab
from voidbox_lab.gateway.egress import own
from voidbox_lab.gateway.egress.own import is_own

IN_NAMESPACE = """
import asyncio, fcntl, socket, struct
from voidbox_lab.gateway.egress.rules import Rules
from voidbox_lab.gateway.egress.targets import parse_authority
from voidbox_lab.spec import Policy

def ioctl(request, label, address):
    # struct ifreq with a struct sockaddr_in, netdevice(7)
    fcntl.ioctl(sock, request, struct.pack("16sHH4s8x", label, socket.AF_INET, 0, socket.inet_aton(address)))

SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, UP = 0x8914, 0x8916, 0x891C, 1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", UP))
    for label, address in ((b"lo:1", "93.184.216.1"), (b"lo:2", "93.184.216.2")):
        ioctl(SIOCSIFADDR, label, address)
        ioctl(SIOCSIFNETMASK, label, "255.255.255.0")
    sock.connect(("93.184.216.2", 9))
    assert sock.getsockname()[0] == "93.184.216.1", "the second address is a secondary one"

async def main():
    rules = Rules(Policy(network="monitored"), None)
    for address in ("93.184.216.1", "93.184.216.2", "93.184.217.1"):
        print(address, (await rules.judge(parse_authority(f"{address}:80"))).what)

asyncio.run(main())
"""


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "127.255.255.254"])
def test_all_of_loopback_is_own(address: str) -> None:
    """The kernel's source for most of these is 127.0.0.1, as it is the primary address for a secondary one."""
    assert is_own(ip_address(address))


def test_own_addresses_are_known() -> None:
    """Not what is elsewhere, but the address that this host has to the outside."""
    assert not is_own(ip_address("93.184.216.34"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("93.184.216.34", 9))
        except OSError:
            return  # this host has no route out, hence no such address
        assert is_own(ip_address(sock.getsockname()[0]))


def test_secondary_addresses_are_own() -> None:
    """In a namespace with two addresses in one network, no profile lets a box to either."""
    ready = subprocess.run(["unshare", "-Urn", "true"], capture_output=True, text=True)
    if ready.returncode:
        pytest.skip(f"no unprivileged network namespace here: {ready.stderr.strip()}")
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", IN_NAMESPACE],
        env={"PYTHONPATH": str(Path(voidbox_lab.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split("\n") == [
        "93.184.216.1 denied",
        "93.184.216.2 denied",
        "93.184.217.1 allowed",
        "",
    ], done.stderr


def _route(kind: int) -> bytes:
    return own._HEADER.pack(28, 24, 0, 1, 0) + own._ROUTE.pack(2, 32, 0, 0, 255, 2, 0, kind, 0)


def _error(code: int) -> bytes:
    return own._HEADER.pack(20, 2, 0, 1, 0) + struct.pack("=i", -code)


@pytest.mark.parametrize(
    ("answer", "is_one"),
    [
        *((_route(1), False), (_route(2), True), (_route(3), True), (_route(4), True)),
        *((_error(errno.ENETUNREACH), False), (_error(errno.EHOSTUNREACH), False)),
    ],
)
def test_what_the_kernel_may_answer(answer: bytes, is_one: bool) -> None:
    """Unicast, local, broadcast, anycast; no route."""
    assert own._is_own_route(answer) is is_one


_DONE = own._HEADER.pack(16, 3, 0, 1, 0)


@pytest.mark.parametrize("answer", [b"", _route(2)[:20], _error(errno.EOPNOTSUPP), _DONE])
def test_an_answer_that_tells_nothing_is_an_error(answer: bytes) -> None:
    with pytest.raises(OSError, match=r"\[Errno"):
        own._is_own_route(answer)


def test_a_host_without_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a sandbox that forbids it: an error, never a no."""
    plain: Callable[..., socket.socket] = socket.socket

    def refused(family: int, *rest: int) -> socket.socket:
        if family == socket.AF_NETLINK:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return plain(family, *rest)

    monkeypatch.setattr(socket, "socket", refused)
    with pytest.raises(PermissionError):
        is_own(ip_address("93.184.216.34"))
