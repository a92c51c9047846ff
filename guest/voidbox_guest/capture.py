"""The network of a box that has none: whatever programs connect to is asked of the host's egress proxy.

For the profile ``open``. There is no network card: every address is this machine's own, TCP to any of them comes
to a door of ours, names have stand-ins (`names`), and where a connection meant to go is told to the proxy, which
decides. What it takes of the kernel is loaded when first wanted: other boxes have neither its code nor its holes.
"""

from __future__ import annotations

import os

from wire.protocol import BAD_REQUEST, CAPTURE_PORT, IO

from . import kernel
from .calls import Call, OpError
from .proxy import Proxy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as raw_socket
    from typing import Any

    from .loop import Loop
    from .names import Names

MODULES = "/usr/lib/voidbox/net"
"""Kernel modules in their order, by their files' names."""
_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h


class Capture:
    """The operation. `privileged` False (tests on a host) refuses it."""

    def __init__(self, loop: Loop, proxy: Proxy, *, privileged: bool) -> None:
        self._loop, self._proxy, self._privileged = loop, proxy, privileged
        self._names: Names | None = None

    def operation(self, call: Call) -> dict[str, Any]:
        """Catch all TCP and all DNS from now on; connections go to the proxy at the host's `port`."""
        port = call.integer("port", 0, 1, 0xFFFFFFFE)
        if not self._privileged:
            raise OpError(BAD_REQUEST, "only a box catches connections")
        from . import names, netlink

        if self._names is None:
            known = names.Names()
            try:
                load_modules(MODULES)
                netlink.own_all()
                netlink.redirect_tcp(CAPTURE_PORT)
                names.serve(self._loop, known)
            except OSError as error:
                raise OpError(IO, f"the network cannot be set up: {error}") from None
            self._names = known
        self._proxy.open(CAPTURE_PORT, port, self.meant)
        return {}

    def meant(self, sock: raw_socket) -> str:
        """Where `sock`, which came in, meant to go. Raises OSError."""
        assert self._names is not None, "the door is open"
        # sockaddr_in, as it was before the redirection.
        address = sock.getsockopt(0, _SO_ORIGINAL_DST, 16)
        if address[4] == 127:
            raise OSError("it came by itself")
        return f"{self._names.meant(address[4:8])}:{int.from_bytes(address[2:4], 'big')}"


def load_modules(directory: str) -> None:
    """Load all kernel modules in `directory` that are not. Raises OSError."""
    for name in sorted(os.listdir(directory)):
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.load_module(fd)
        except FileExistsError:
            continue
        finally:
            os.close(fd)
