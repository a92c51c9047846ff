"""Byte streams between host and box over vsock: one `Transport`, two ways to carry it.

- `open_kernel`: the host kernel's AF_VSOCK, where ``/dev/vhost-vsock`` works;
- `open_user`: a vhost-user-vsock device of our own, one small process per box, where it does not.

Not for what is said on those streams: that is `voidbox_lab.wire`.

Names are loaded when first used: the device process imports this package too, and starts in tens of
milliseconds because it pays for nothing but the standard library's socket modules.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voidbox_lab.vsock.kernel import KernelTransport, kernel_available, open_kernel
    from voidbox_lab.vsock.stream import Listener, Stream
    from voidbox_lab.vsock.transport import Transport, VsockDevice
    from voidbox_lab.vsock.user import UserTransport, open_user, start_user

_HOME = {
    "KernelTransport": "kernel",
    "kernel_available": "kernel",
    "open_kernel": "kernel",
    "Listener": "stream",
    "Stream": "stream",
    "Transport": "transport",
    "VsockDevice": "transport",
    "UserTransport": "user",
    "open_user": "user",
    "start_user": "user",
}

__all__ = [
    "KernelTransport",
    "Listener",
    "Stream",
    "Transport",
    "UserTransport",
    "VsockDevice",
    "kernel_available",
    "open_kernel",
    "open_user",
    "start_user",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
