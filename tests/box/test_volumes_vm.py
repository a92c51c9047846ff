"""Volumes in real boxes: what one writes the next reads, however it starts and however it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.machines.guests import qemus
from voidbox_lab.box import Box, Boxes, Completed
from voidbox_lab.errors import BoxLost, ProviderError, UserError
from voidbox_lab.machines import Machine, Volumes
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Policy
from voidbox_lab.spec.volume import Mount

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

MEMORY_MB = 192
SPARE_S = 60


def mounts(*texts: str) -> list[Mount]:
    """As a user writes them."""
    return [Mount.model_validate(text) for text in texts]


async def sh(box: Box, script: str, **options: Any) -> Completed:
    """Run a shell script in `box`."""
    return await box.run(["sh", "-c", script], timeout_s=60, **options)


@asynccontextmanager
async def factory(boxes: Boxes, data: Path, **changes: Any) -> AsyncIterator[Boxes]:
    """Boxes with volumes of their own."""
    settings = replace(Settings.from_env(), data=data, **{"spares": 0} | changes)
    async with Boxes(settings, boxes.hypervisor) as made:
        yield made


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    """Two volumes, ``one`` and ``two``."""
    made = Volumes(replace(Settings.from_env(), data=tmp_path))
    for name in ("one", "two"):
        made.create(name, 32)
    return made


@pytest.fixture
async def own(boxes: Boxes, volumes: Volumes, tmp_path: Path) -> AsyncIterator[Boxes]:
    """Clones that have those volumes."""
    async with factory(boxes, tmp_path) as made:
        yield made


async def opened(own: Boxes, *texts: str, policy: Policy | None = None) -> Box:
    """A box with these volumes."""
    return await own.open(memory_mb=MEMORY_MB, volumes=mounts(*texts), policy=policy)


async def refusal(own: Boxes, *texts: str) -> UserError:
    """Why there is no such box."""
    with pytest.raises(UserError) as caught:
        await (await opened(own, *texts)).close()
    assert own.running == 0 or caught.value.cause == "volume-in-use"
    return caught.value


@pytest.mark.parametrize("start", ["cold", "clone", "spare"])
async def test_written_in_one_box_read_in_the_next(
    boxes: Boxes, volumes: Volumes, tmp_path: Path, start: str
) -> None:
    """Each way of starting: by serial, not by order; as the agent; clean at the end."""
    changes = {"warm": "off" if start == "cold" else "auto", "spares": 1 if start == "spare" else 0}
    async with factory(boxes, tmp_path, **changes) as made:

        async def spared() -> None:
            if start == "spare":
                made.pool.asked(await made.recipe(memory_mb=MEMORY_MB))
                with anyio.fail_after(SPARE_S):
                    while not len(made.pool):
                        await anyio.sleep(0.05)

        await spared()
        async with await opened(made, "one:/data", "two:/srv/deep/er") as box:
            assert (box.facts.start, box.facts.start_note) == (start, "")
            # Something holds a file open for writing when the box is closed.
            await box.start_exec(["sh", "-c", "exec 3>/data/open; echo half >&3; sleep 1000"])
            done = await sh(
                box, "id -u; echo first > /data/f; mkdir /srv/deep/er/d; cat /proc/mounts; cat /data/open"
            )
            assert (done.exit_code, done.stderr) == (0, b""), done
            lines = [line.split() for line in done.stdout.decode().splitlines() if " ext4 " in line]
            options = {line[1]: line[3].split(",") for line in lines}
            for path in ("/data", "/srv/deep/er"):
                assert {"rw", "nosuid", "nodev", "noexec", "discard"} <= set(options[path])
        assert volumes.find("one").users() == []
        await spared()
        # In the other order, and read-only: that works only where no journal is left to replay.
        async with await opened(made, "two:/mnt/two:ro", "one:/data:ro") as box:
            assert box.facts.start == start
            done = await sh(box, "cat /data/f /data/open; ls /mnt/two; touch /data/no")
            assert done.stdout.split() == [b"first", b"half", b"d", b"lost+found"]
            assert (done.exit_code, b"Read-only file system" in done.stderr) == (1, True)
    for name in ("one", "two"):
        assert volumes.find(name).users() == []


async def test_read_only_is_not_the_guests_to_lift(own: Boxes, volumes: Volumes) -> None:
    """Root in the guest cannot write either: QEMU has the disk open for reading."""
    before = volumes.find("one").disk.read_bytes()
    async with await opened(own, "one:/data:ro") as box:
        script = (
            "for s in /sys/block/vd*/serial; do read -r n < $s; d=${s#/sys/block/}; "
            'if [ "$n" = volume0 ]; then dd if=/dev/zero of=/dev/${d%/serial} bs=4096 count=8 conv=fsync; fi; done'
        )
        done = await sh(box, script, user="root")
        assert done.exit_code == 1, done
        assert b"records in" not in done.stderr or b"error" in done.stderr, done
    assert volumes.find("one").disk.read_bytes() == before


async def test_one_writer_or_many_readers(own: Boxes, volumes: Volumes) -> None:
    """Who comes second is told who was first; a volume in use stays."""
    async with await opened(own, "one:/data", "two:/models:ro") as box:
        for text in ("one:/data", "one:/x:ro", "two:/x"):
            error = await refusal(own, text)
            assert error.cause == "volume-in-use"
            assert box.id in error.message
            assert str(os.getpid()) in error.message
        with pytest.raises(UserError, match=box.id):
            volumes.remove("one")
        assert [user.box for user in volumes.find("one").users()] == [box.id]
        async with await opened(own, "two:/models:ro") as other:
            assert {user.box for user in volumes.find("two").users()} == {box.id, other.id}
            assert (await sh(box, "echo still > /data/there")).exit_code == 0
    volumes.remove("one")
    assert (await refusal(own, "one:/data")).cause == "no-volume"


async def test_qemu_itself_refuses_a_second_writer(
    own: Boxes, volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second line, for boxes that outlive the process that held the lock."""
    async with await opened(own, "one:/data") as box:
        monkeypatch.setattr(Volumes, "_locked", lambda *_: os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        with pytest.raises(ProviderError, match="voidbox gc") as caught:
            await opened(own, "one:/data")
        assert caught.value.cause == "disk-locked"
        assert (await sh(box, "echo mine > /data/f; sync; cat /data/f")).stdout == b"mine\n"


async def test_what_was_synced_survives_a_killed_qemu(own: Boxes) -> None:
    """The journal is replayed by the next box that may write; one that only reads is told so."""
    box = await opened(own, "one:/data")
    done = await sh(box, "echo kept > /data/f; sync; for n in 1 2 3 4; do echo $n > /data/$n; done")
    assert done.exit_code == 0, done
    (pid,) = qemus(box.id)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BoxLost):
        await sh(box, "sleep 30")
    await box.close()
    error = await refusal(own, "one:/data:ro")
    assert error.cause == "volume-unclean"
    assert "voidbox exec --volume one:/data -- true" in error.message
    async with await opened(own, "one:/data") as box:
        done = await sh(box, "cat /data/f && echo more >> /data/f")
        assert (done.exit_code, done.stdout) == (0, b"kept\n"), done
    async with await opened(own, "one:/data:ro") as box:
        assert (await sh(box, "cat /data/f")).stdout == b"kept\nmore\n"


async def test_a_hostile_file_system_is_the_volumes_problem(own: Boxes, volumes: Volumes) -> None:
    """Garbage, and a superblock that lies: an error of the user's, and the lock is free again."""
    disk = volumes.find("one").disk
    with disk.open("r+b") as file:
        file.seek(1024 + 0x18)  # s_log_block_size
        file.write(b"\xff\xff\xff\xff")
    assert (await refusal(own, "two:/mnt/two", "one:/data")).cause == "volume-damaged"
    assert volumes.find("two").users() == []
    disk.write_bytes(bytes(32 << 20))
    assert (await refusal(own, "one:/data")).cause == "volume-damaged"
    async with await opened(own, "two:/data") as box:
        assert (await sh(box, "touch /data/f")).exit_code == 0


async def test_programs_on_a_volume_need_the_policy(own: Boxes) -> None:
    """Not by default, since an agent may have written them; by name, in the very next box."""
    async with await opened(own, "one:/tools") as box:
        done = await sh(box, "cp /usr/bin/echo /tools/say && /tools/say no")
        assert done.exit_code == 126, done
    policy = Policy(commands=("/usr/", "/tools/"))
    async with await opened(own, "one:/tools:ro", policy=policy) as box:
        done = await sh(box, "/tools/say yes")
        assert (done.exit_code, done.stdout) == (0, b"yes\n"), done


async def test_a_clone_that_takes_no_disk_boots_instead(own: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says why."""

    async def plug(self: Machine, volumes: Sequence[object]) -> None:
        raise ProviderError("No place for it.", cause="libvirt")

    monkeypatch.setattr(Machine, "plug", plug)
    async with await opened(own, "one:/data") as box:
        assert box.facts.start == "cold"
        assert "No place for it." in box.facts.start_note
        assert (await sh(box, "touch /data/f")).exit_code == 0


async def test_eight_volumes_and_what_is_deleted_takes_no_room(
    boxes: Boxes, volumes: Volumes, tmp_path: Path
) -> None:
    """As many as there may be, in a clone and in a box that booted cold."""
    names = [f"v{n}" for n in range(8)]
    for name in names:
        volumes.create(name, 64)
    texts = [f"{name}:/data/{name}" for name in names]
    for warm in ("auto", "off"):
        async with factory(boxes, tmp_path, warm=warm) as made, await opened(made, *texts) as box:
            done = await sh(box, "for n in 0 1 2 3 4 5 6 7; do echo $n >> /data/v$n/f; done; cat /data/v*/f")
            assert done.stdout.split() == [str(n).encode() for n in range(8) for _ in range(1 + (warm == "off"))]
            await sh(box, "head -c 20000000 /dev/urandom > /data/v0/big; sync")
            assert volumes.find("v0").used > 20_000_000
            await sh(box, "rm /data/v0/big; sync")
        assert volumes.find("v0").used < 5_000_000
