"""Folders of the host in a real box: read-only for everybody, writable and back, many files at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from voidbox_lab.box import Boxes
from voidbox_lab.box.bundles import LeftOut
from voidbox_lab.box.folders import at_first, bring_back, mounted
from voidbox_lab.errors import UserError
from voidbox_lab.spec import Policy
from voidbox_lab.spec.hostmount import HostMount

pytestmark = [pytest.mark.anyio, pytest.mark.vm]
MANY = 1000


async def test_there_and_back(boxes: Boxes, tmp_path: Path) -> None:
    """One box, all of it: what only a kernel of its own can show."""
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "sub").mkdir(parents=True)
    for n in range(MANY):
        (data / f"sub/{n:04}").write_bytes(bytes([n % 256]) * 4096)
    (data / "near").symlink_to("sub/0001")
    (data / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (data / "run.sh").chmod(0o755)
    out.mkdir()
    (out / "old").write_text("old")
    (out / "gone").write_text("gone")
    (out / "kept").write_bytes(bytes(1 << 20))
    mounts = [HostMount.model_validate(f"{data}:/data"), HostMount.model_validate(f"{out}:/workspace/out:rw")]
    # Names what is there only once the folders are: a program in one, a directory that is the other.
    policy = Policy(commands=("/usr/", "/data/"), write=("/workspace",))
    opened = await boxes.open(memory_mb=384, policy=at_first(policy, mounts))
    async with opened as box, mounted(box, mounts, policy) as copied:
        assert copied[0].event.files == MANY + 1
        script = "cat /data/sub/* /data/near | wc -c; stat -c %a /data/run.sh; sh /data/run.sh"
        seen = await box.run(["sh", "-c", script], timeout_s=60)
        assert seen.stdout.split() == [str((MANY + 1) * 4096).encode(), b"755", b"ran"], seen.stderr
        # Read-only is the mount, not only the owner's rights.
        for user in ("agent", "root"):
            for change in ("echo x >> /data/run.sh", "rm /data/near", "touch /data/new"):
                done = await box.run(["sh", "-c", change], user=user, timeout_s=60)  # type: ignore[arg-type]
                assert done.exit_code != 0, (user, change)
        assert (await box.run(["/data/run.sh"], timeout_s=60)).stdout == b"ran\n"
        change = """
            cd /workspace/out && echo new > old && rm gone && mkdir -p d/e && echo deep > d/e/f &&
            chmod 4755 d/e/f && ln -s ../old d/link && head -c 300000 /dev/urandom > random &&
            cp /usr/bin/id . && ! ./id && rm id
        """
        done = await box.run(["sh", "-c", change], timeout_s=60)
        assert done.exit_code == 0, done.stderr
        back = [event async for event in bring_back(box, copied, "aside")]
        assert [(e.mount, e.direction, e.files) for e in back] == [(str(mounts[1]), "out", 3)]
        left_out = LeftOut()
        pack = box.pack("/etc", max_files=4000, max_bytes=64 << 20, left_out=left_out)
        names = {item.path async for item in pack}
        assert "passwd" in names
        assert "shadow" not in names
        assert left_out.count
        with pytest.raises(UserError) as caught:
            async with mounted(box, mounts[:1], policy):
                pass
        assert caught.value.cause == "mount"
    assert (out / "old").read_text() == "new\n"
    assert (out / "d/e/f").read_text() == "deep\n"
    assert (out / "d/e/f").stat().st_mode & 0o7777 == 0o755
    assert (out / "d/link").read_text() == "new\n"
    assert (out / "random").stat().st_size == 300_000
    assert not (out / "gone").exists()
    assert (out / "kept").stat().st_size == 1 << 20
    assert sorted(p.name for p in out.iterdir()) == ["d", "kept", "old", "random"]
