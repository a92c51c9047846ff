"""OCI images from registries: as the root of a box, and read-only at a place in it.

`transport` fetches by skopeo, `cache` remembers, `archive` reads layers without trusting them, `tree` knows what
is in them, `layers` writes them as squashfs, `runtime` brings our agent along, `root` and `mounts` put all of it
together. Nothing of an image is ever unpacked on, or executed by, the host.
"""

from __future__ import annotations

from voidbox_lab.images.oci.mounts import with_mounts
from voidbox_lab.images.oci.root import as_root, pull

__all__ = ["as_root", "pull", "with_mounts"]
