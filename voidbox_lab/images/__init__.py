"""Images: a kernel, an initramfs and a stack of read-only layers, built unprivileged from packages.

Not for running them: that is `voidbox_lab.machines`.
"""

from __future__ import annotations

from voidbox_lab.images.about import describe, find
from voidbox_lab.images.agents import add_agent, known_agents, rehearsals
from voidbox_lab.images.build import build, list_images, read_manifest, resolve, verify
from voidbox_lab.images.compose import compose
from voidbox_lab.images.model import TCG_CPU, Image, Layer, Progress, Report, listening
from voidbox_lab.images.oci import pull
from voidbox_lab.images.prune import prune

__all__ = [
    "TCG_CPU",
    "Image",
    "Layer",
    "Progress",
    "Report",
    "add_agent",
    "build",
    "compose",
    "describe",
    "find",
    "known_agents",
    "list_images",
    "listening",
    "prune",
    "pull",
    "read_manifest",
    "rehearsals",
    "resolve",
    "verify",
]
