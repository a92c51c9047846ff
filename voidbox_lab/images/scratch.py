"""Makes the scratch template: the writable half of a box's overlay root, with the agent's own directories.

Sparse ext4 without a journal (a box's disk never outlives the box), with `upper` and `work` for overlayfs
already in it so that the initramfs has nothing to make. Fixed UUID, hash seed and clock: same bytes each time.
"""

from __future__ import annotations

from pathlib import Path

from voidbox_lab.images import tools

AGENT_UID = 1000
AGENT_DIRECTORIES = ("home/agent", "workspace", "workspace/input", "workspace/output")
"""What belongs to uid and gid 1000 in every box."""

LABEL = "vb-scratch"
_UUID = "5c7a7c40-5c7a-4c7a-8c7a-5c7a7c400001"
_SEED = "5c7a7c40-5c7a-4c7a-8c7a-5c7a7c400002"


def make(target: Path, size_mb: int) -> None:
    """Write the template, `size_mb` MiB as the guest sees it, to `target`.

    Raises:
        Unavailable: e2fsprogs are missing.
        ProviderError: mkfs.ext4 or debugfs failed.
    """
    target.unlink(missing_ok=True)
    with target.open("xb") as file:
        file.truncate(size_mb << 20)
    env = {"E2FSPROGS_FAKE_TIME": "1"}
    features = "^has_journal,^resize_inode,^metadata_csum,uninit_bg,sparse_super2"
    tools.run(
        [
            "mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-i", "65536", "-L", LABEL, "-U", _UUID,
            "-O", features, "-E", f"lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed={_SEED}", target,
        ],
        timeout_s=120,
        env=env,
    )  # fmt: skip
    # `mkfs.ext4 -d` would take owners from the builder's files; debugfs makes them root's, and gives them away.
    commands = [f"mkdir {name}" for name in ("upper", "work", "upper/home")]
    commands += [f"mkdir upper/{name}" for name in AGENT_DIRECTORIES]
    for name in AGENT_DIRECTORIES:
        commands += [f"set_inode_field upper/{name} {field} {AGENT_UID}" for field in ("uid", "gid")]
    tools.run(["debugfs", "-w", "-f", "-", target], stdin="\n".join(commands).encode(), timeout_s=60, env=env)
