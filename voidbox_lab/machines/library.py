"""Imports libvirt's bindings without their chatter: none of it may reach a notebook's or terminal's stderr."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from voidbox_lab.errors import Unavailable


@contextmanager
def _quiet() -> Iterator[None]:
    """Importing initialises the library, which logs to stderr unless told otherwise before.

    All it would say comes back as exceptions. The variable must not leak into programs started later.
    """
    name = "LIBVIRT_LOG_OUTPUTS"
    given = name in os.environ
    os.environ.setdefault(name, "4:file:/dev/null")
    try:
        yield
    finally:
        if not given:
            del os.environ[name]


try:
    with _quiet():
        import libvirt
        import libvirt_qemu
except ImportError as error:
    raise Unavailable(
        f"libvirt's Python bindings cannot be loaded ({error}); install libvirt (Debian, Ubuntu: `apt install "
        "libvirt0 libvirt-daemon libvirt-daemon-driver-qemu`) and run `pip install libvirt-python`."
    ) from error

libvirt.registerErrorHandler(lambda _context, _error: None, None)

__all__ = ["libvirt", "libvirt_qemu"]
