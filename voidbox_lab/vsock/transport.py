"""The contract of host-guest streams: what a box needs from vsock, whichever way it is carried.

Not for either way itself: see `user` and `kernel`. Both pass one conformance suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from voidbox_lab.vsock.stream import Listener, Stream

Kind = Literal["kernel", "user"]

ANY_PORT = 0
"""Asks `Transport.listen` and `Transport.forward` for a free port."""
PORT_MAX = 0xFFFFFFFE
"""Highest vsock port; 0xFFFFFFFF is VMADDR_PORT_ANY (vsock(7))."""


@dataclass(frozen=True)
class VsockDevice:
    """What the domain XML needs to know of a box's vsock device."""

    kind: Kind
    socket: Path | None
    """The vhost-user socket QEMU connects to (user kind)."""
    cid: int | None
    """The guest's CID; None where the hypervisor assigns one (kernel kind, ``<cid auto='yes'/>``)."""


@runtime_checkable
class Transport(Protocol):
    """One box's vsock, from before its domain starts until it is gone."""

    kind: Kind
    box_dir: Path
    cid: int | None
    """The guest's CID: known at once (user) or once `KernelTransport.assigned` was told (kernel)."""

    async def ready(self) -> None:
        """Wait, within a bound, until a hypervisor may connect to the device.

        Raises:
            ProviderError: the device did not start; the transport is closed.
        """
        ...

    def listen(self, port: int = ANY_PORT) -> Listener:
        """Take connections that the guest dials to host `port`; 0 picks a free one (see `Listener.port`).

        Pick: with the kernel kind host ports are shared by every box and program of this host.

        Raises:
            UserError: `port` is none, or taken.
        """
        ...

    def forward(self, port: int, path: Path) -> int:
        """Splice connections that the guest dials to host `port` to the UNIX socket `path`; the port.

        A guest's dial is refused while nothing listens at `path`. Ends with `aclose`.

        Raises:
            UserError: `port` is none, or taken.
        """
        ...

    async def connect(self, port: int, timeout_s: float) -> Stream:
        """Connect to what listens on `port` in the guest.

        Raises:
            LimitExceeded: not within `timeout_s` seconds.
            ProviderError: refused by the guest (cause ``refused``).
            BoxLost: the device process is gone (cause ``vsock-died``).
        """
        ...

    def domain(self) -> VsockDevice:
        """What the domain XML needs."""
        ...

    async def aclose(self) -> None:
        """End listeners, forwards and the device; streams already given out are their owners' to close."""
        ...
