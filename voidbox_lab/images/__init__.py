"""Images: a kernel, an initramfs and a stack of read-only layers, built unprivileged from packages.

Not for running them: that is `voidbox_lab.machines`.
"""

from __future__ import annotations

from voidbox_lab.images.agents import add_agent, known_agents, rehearsals
from voidbox_lab.images.build import build, list_images, prune, read_manifest, resolve, verify
from voidbox_lab.images.model import TCG_CPU, Image, Layer, Progress, Report

__all__ = [
    "TCG_CPU",
    "Image",
    "Layer",
    "Progress",
    "Report",
    "add_agent",
    "build",
    "known_agents",
    "list_images",
    "prune",
    "read_manifest",
    "rehearsals",
    "resolve",
    "verify",
]
