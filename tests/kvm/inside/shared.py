"""The one box that many checks use, and how large and how patient boxes are in here."""

from __future__ import annotations

from dataclasses import dataclass

from voidbox_lab.box import Box

MEMORY_MB = 256
BOOT_S = 240.0
"""A box boots in here in about half a minute; beside other work it takes longer."""
PROBE_S = 60.0
"""The product's 20 s suffice here on an idle machine only; a boot of 3 to 25 s was seen."""


@dataclass(frozen=True)
class SharedBox:
    """A box kept for many checks, since each boot costs half a minute, and its CID by QEMU's own word."""

    box: Box
    cid: int
