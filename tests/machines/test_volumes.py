"""Volumes on disk and who may have them, without a box."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.images import tools
from voidbox_lab.machines import volumes as module
from voidbox_lab.machines.volumes import MAX_MB, MIN_MB, Volumes
from voidbox_lab.settings import Settings
from voidbox_lab.spec.volume import Mount

BOX = "vb-0123456789"
_HOLD = """
import sys
from pathlib import Path
from dataclasses import replace
from voidbox_lab.machines.volumes import Volumes
from voidbox_lab.settings import Settings
from voidbox_lab.spec.volume import Mount
held = Volumes(replace(Settings.from_env(), data=Path(sys.argv[1]))).hold([Mount.model_validate(sys.argv[2])])
held.name("vb-00000000aa")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    """None yet."""
    return Volumes(replace(Settings.from_env(), data=tmp_path))


def mount(text: str) -> Mount:
    """As a user writes it."""
    return Mount.model_validate(text)


def test_made_found_listed_and_removed(volumes: Volumes, tmp_path: Path) -> None:
    """Private, sparse, the agent's, and whole: nothing else is left of making it."""
    assert volumes.all() == []
    made = volumes.create("cache", 64)
    volumes.create("a", MIN_MB)
    assert volumes.find("cache") == made
    assert [volume.facts.name for volume in volumes.all()] == ["a", "cache"]
    assert made.disk.stat().st_size == 64 << 20
    assert made.used < 1 << 20
    for path in (made.path, made.path.parent, *made.path.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    shown = tools.run(["debugfs", "-R", "stat /", made.disk], timeout_s=10).decode()
    assert "User:  1000   Group:  1000" in shown
    header = tools.run(["debugfs", "-R", "stats -h", made.disk], timeout_s=10).decode()
    assert "Reserved block count:     0" in header
    assert "has_journal" in header
    assert "orphan_file" not in header
    volumes.remove("cache")
    assert [volume.facts.name for volume in volumes.all()] == ["a"]
    assert [path.name for path in (tmp_path / "volumes").iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A", "x" * 65, ".new-0", "a\n"])
def test_names_that_are_none(volumes: Volumes, name: str) -> None:
    """No path is made of them."""
    for act in (lambda: volumes.create(name, 64), lambda: volumes.find(name), lambda: volumes.remove(name)):
        with pytest.raises(UserError, match="is not a name"):
            act()


def test_sizes_out_of_range(volumes: Volumes, tmp_path: Path) -> None:
    """The bounds, and the disk's free space; nothing is left."""
    for size in (0, MIN_MB - 1, MAX_MB + 1):
        with pytest.raises(UserError, match=f"{MIN_MB} to {MAX_MB} MB"):
            volumes.create("a", size)
    free = os.statvfs(tmp_path)
    more = (free.f_bavail * free.f_frsize >> 20) + 1024
    if more <= MAX_MB:
        with pytest.raises(UserError, match="MB free, less than"):
            volumes.create("a", more)
    assert volumes.all() == []


def test_a_name_is_taken_once(volumes: Volumes) -> None:
    """The first stays as it is."""
    first = volumes.create("a", 16)
    with pytest.raises(UserError, match="already"):
        volumes.create("a", 32)
    assert volumes.find("a") == first


def test_what_is_not_there(volumes: Volumes) -> None:
    """The message has the command that makes it."""
    for act in (
        lambda: volumes.find("nix"),
        lambda: volumes.remove("nix"),
        lambda: volumes.hold([mount("nix:/data")]),
    ):
        with pytest.raises(UserError, match="voidbox volume create nix") as caught:
            act()
        assert caught.value.cause == "no-volume"


def test_one_writer_or_many_readers(volumes: Volumes) -> None:
    """Also within one process; all of a box's volumes or none."""
    volumes.create("a", 16)
    volumes.create("b", 16)
    readers = [volumes.hold([mount("a:/data:ro")]) for _ in range(2)]
    with pytest.raises(UserError, match="in use by a box that starts") as caught:
        volumes.hold([mount("b:/b"), mount("a:/data")])
    assert caught.value.cause == "volume-in-use"
    assert len(volumes.find("a").users()) == 2
    for reader in readers:
        reader.close()
        reader.close()
    with volumes.hold([mount("b:/b"), mount("a:/data")]) as writer:
        writer.name(BOX)
        assert [str(user.box) for user in volumes.find("a").users()] == [BOX]
        assert [(disk.serial, disk.read_only, disk.lasting) for disk in writer.disks] == [
            ("volume0", False, True),
            ("volume1", False, True),
        ]
        for text in ("a:/data:ro", "a:/data"):
            with pytest.raises(UserError, match=BOX):
                volumes.hold([mount(text)])
        with pytest.raises(UserError, match=BOX):
            volumes.remove("b")
    volumes.remove("b")


@pytest.mark.parametrize("how", ["rw", "ro"])
def test_another_process_has_it_until_it_ends(volumes: Volumes, tmp_path: Path, how: str) -> None:
    """However it ends: nothing needs to be cleaned up."""
    volumes.create("a", 16)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path), f"a:/data:{how}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"box vb-00000000aa of process {other.pid}"):
            volumes.hold([mount("a:/data")])
        if how == "ro":
            volumes.hold([mount("a:/data:ro")]).close()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert volumes.find("a").users() == []
    assert list((tmp_path / "volumes" / "a" / "users").iterdir()) == []
    volumes.hold([mount("a:/data")]).close()


def test_damaged_ones_are_named_and_can_be_removed(volumes: Volumes) -> None:
    """Facts that are no facts, a lock or a disk that is gone: the user's to mend."""
    for damage in ("volume.json", "lock", "disk.raw"):
        made = volumes.create("a", 16)
        (made.path / damage).unlink()
        if damage == "volume.json":
            (made.path / damage).write_text(json.dumps({"name": "a"}))
        with pytest.raises(UserError, match="voidbox volume rm a") as caught:
            volumes.hold([mount("a:/data")])
        assert caught.value.cause == "volume-damaged"
        volumes.remove("a")
        assert volumes.all() == []


def test_what_a_killed_maker_left_goes_after_a_while(volumes: Volumes, tmp_path: Path) -> None:
    """And not before: another may be at it."""
    root = tmp_path / "volumes"
    volumes.create("a", 16)
    for name in (".new-old", ".gone-old", ".new-young"):
        (root / name).mkdir()
        if name.endswith("old"):
            past = time.time() - module.FORGOTTEN_S - 60
            os.utime(root / name, (past, past))
    volumes.create("b", 16)
    assert sorted(path.name for path in root.iterdir()) == [".new-young", "a", "b"]
    assert [volume.facts.name for volume in volumes.all()] == ["a", "b"]
