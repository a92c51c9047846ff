"""Images: a kernel, an initramfs and a stack of read-only layers, built unprivileged from packages.

Not for running them: that is `voidbox_lab.machines`.
"""

from __future__ import annotations

from voidbox_lab.images.build import build, list_images, prune, read_manifest, resolve, verify
from voidbox_lab.images.model import Image, Layer, Progress

__all__ = ["Image", "Layer", "Progress", "build", "list_images", "prune", "read_manifest", "resolve", "verify"]
