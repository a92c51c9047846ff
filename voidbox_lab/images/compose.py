"""The image for a box: its base, and on top the layers that its agent and its skills need."""

from __future__ import annotations

import contextlib
import os

from voidbox_lab.errors import UserError
from voidbox_lab.images import oci
from voidbox_lab.images.agents import add_agent
from voidbox_lab.images.build import MAX_DISKS, resolve
from voidbox_lab.images.layers.stack import add_packages
from voidbox_lab.images.model import Image, Report, listener
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Rootfs, is_oci


def compose(settings: Settings, rootfs: Rootfs, progress: Report | None = None, *, refresh: bool = False) -> Image:
    """The image that `rootfs` says. Blocking: quick once its layers are there, else as long as
    downloads take.

    Args:
        progress: told of what is made; else whoever listens to this task (`listening`).
        refresh: pin the newest versions of its packages, where none is named.

    Raises:
        Unavailable: an image was never built, or what a layer is made of cannot be had.
        UserError: there is no such agent, package or image.
        LimitExceeded: a tool or another builder took too long.
        ProviderError: what was fetched is not what was promised.
    """
    report = progress or listener()
    if is_oci(rootfs.image) and rootfs.packages:
        raise UserError(
            f"Packages are layers for the image 'default', and this box has {rootfs.image!r}; put what it needs "
            "into that image, or leave the image out.",
            cause="packages",
        )
    if is_oci(rootfs.image):
        others = len(rootfs.oci) + bool(rootfs.agent)
        image = oci.as_root(settings, rootfs.image, report, others=others)
    else:
        image = resolve(settings, rootfs.image)
    if rootfs.agent:
        image = add_agent(settings, image, rootfs.agent, progress=report)
    if rootfs.packages:
        # Each of the images that are skills is a disk, too, and a layer tells the guest where they are.
        room = MAX_DISKS - len(image.layers) - len(rootfs.oci) - bool(rootfs.oci)
        image = add_packages(settings, image, rootfs.packages, room=room, progress=report, refresh=refresh)
    if rootfs.oci:
        image = oci.with_mounts(settings, image, rootfs.oci, report)
    # When it was last wanted; see `prune`.
    with contextlib.suppress(OSError):
        os.utime(settings.cache / "images" / image.name / "current")
    return image
