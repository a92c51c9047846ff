"""The small layer that tells the guest agent about the image it finds itself in; see `voidbox_guest.image`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voidbox_lab.images import squashfs, unpack
from voidbox_lab.images.assemble import GUEST_CODE, how
from voidbox_lab.images.store import Store

LAYER = "image"
"""Its name among an image's layers; there is one at most."""
FILE = f"{GUEST_CODE}/image.json"


def facts(oci: Mapping[str, Any] | None, mounts: Sequence[str]) -> dict[str, Any]:
    """What the layer says: of an image of somebody else's its environment, and where file systems are mounted."""
    env = dict(oci["env"]) if oci else {}
    if oci and oci["working_dir"]:
        env.setdefault("VOIDBOX_IMAGE_WORKDIR", oci["working_dir"])
    return {"foreign": oci is not None, "env": env, "mounts": list(mounts)}


def layer(store: Store, said: Mapping[str, Any]) -> dict[str, Any]:
    """The layer that says `said`, as a manifest has it. Quick; under the store's lock unless it is there."""
    data = json.dumps(said, sort_keys=True).encode()

    def make(target: Path) -> None:
        path = target.parent / "root" / FILE
        unpack.make_directory(path.parent)
        path.write_bytes(data)
        path.chmod(0o644)
        squashfs.make(target.parent / "root", target, compression="none")

    return asdict(store.step(inputs(said), "layers", make)) | {"name": LAYER}


def inputs(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the layer depends on, for `Store.step`."""
    return {"how": how("squashfs", "unpack", "oci/box"), "mksquashfs": squashfs.version(), "said": dict(said)}
