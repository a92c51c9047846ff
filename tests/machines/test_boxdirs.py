"""Box directories: marked from their first moment, found when left behind, never taken from the living."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from voidbox_lab.errors import ProviderError
from voidbox_lab.machines import processes
from voidbox_lab.machines.boxdirs import OWNER_FILE, QUIET_S, UNFINISHED_S, BoxDirs, claim, left_behind
from voidbox_lab.machines.owner import Owner
from voidbox_lab.settings import Settings

BOX = "vb-0123456789"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home in the test's directory."""
    return Settings(
        cache=tmp_path / "cache", data=tmp_path / "data", runtime=tmp_path / "run", shm=tmp_path / "shm"
    )


@pytest.fixture
def owner(settings: Settings) -> Owner:
    """This process, owning `BOX`."""
    return Owner.current(settings, BOX)


def found(settings: Settings) -> list[Path]:
    """What a sweep would remove."""
    return sorted(path for _, path in left_behind(settings))


def age(path: Path, seconds: float) -> None:
    """Make `path` and what is in it look unchanged for so long."""
    for each in (*path.iterdir(), path):
        moment = each.stat().st_mtime - seconds
        os.utime(each, (moment, moment))


def test_claimed_and_removed(settings: Settings, owner: Owner) -> None:
    """Both directories are private and marked; removing them twice is fine."""
    dirs = claim(settings, owner)
    for path in (dirs.runtime, dirs.cache):
        assert path.stat().st_mode & 0o777 == 0o700
        assert Owner.from_mapping(json.loads((path / OWNER_FILE).read_text())) == owner
        assert [p.name for p in path.parent.iterdir()] == [BOX]
    dirs.remove()
    dirs.remove()
    assert not dirs.runtime.exists()
    assert not dirs.cache.exists()


def test_a_directory_that_cannot_be_made(settings: Settings, owner: Owner) -> None:
    """One sentence, and no half of a box stays."""
    settings.cache.parent.mkdir(exist_ok=True)
    settings.cache.write_text("a file in the way")
    with pytest.raises(ProviderError, match="could not be made") as caught:
        claim(settings, owner)
    assert caught.value.cause == "disk"
    assert list((settings.runtime / "b").iterdir()) == []


def test_the_living_keep_theirs(settings: Settings, owner: Owner) -> None:
    """However old."""
    dirs = claim(settings, owner)
    age(dirs.cache, 10 * QUIET_S)
    assert found(settings) == []


def test_the_dead_lose_theirs(settings: Settings, owner: Owner) -> None:
    """All directories, at once."""
    dirs = claim(settings, replace(owner, start_time=owner.start_time + 1))
    assert found(settings) == sorted([dirs.runtime, dirs.cache, dirs.memory])


def test_a_mark_leads_to_another_home(settings: Settings, owner: Owner) -> None:
    """The cache is shared by homes, and a box's processes work below its owner's."""
    away = replace(settings, runtime=settings.runtime.with_name("away"), shm=settings.shm.with_name("away-shm"))
    claim(away, replace(Owner.current(away, BOX), start_time=owner.start_time + 1))
    ((box, path),) = left_behind(settings)
    assert (box.runtime, path) == (away.runtime / "b" / BOX, settings.cache / "boxes" / BOX)


def test_an_owner_out_of_sight(settings: Settings, owner: Owner) -> None:
    """A shared cache is left alone until it has been quiet for a day; the others die with their boot."""
    dirs = claim(settings, replace(owner, boot_id="another"))
    assert found(settings) == sorted([dirs.runtime, dirs.memory])
    age(dirs.cache, QUIET_S + 60)
    assert found(settings) == sorted([dirs.runtime, dirs.cache, dirs.memory])
    dirs.remove()
    dirs = claim(settings, replace(owner, pid_namespace=1))
    assert found(settings) == []
    age(dirs.cache, QUIET_S + 60)
    assert found(settings) == [dirs.cache]


@pytest.mark.parametrize("mark", [None, "", "{}", "[1]", '{"pid": 1}', "x" * 10_000], ids=repr)
def test_an_unreadable_mark_gets_time(settings: Settings, owner: Owner, mark: str | None) -> None:
    """Somebody may be writing it; after a while nobody is."""
    path = BoxDirs.of(settings, BOX).runtime
    path.mkdir(parents=True)
    if mark is not None:
        (path / OWNER_FILE).write_text(mark)
    assert found(settings) == []
    age(path, UNFINISHED_S + 60)
    assert found(settings) == [path]


def test_nothing_else_is_a_box_directory(settings: Settings, tmp_path: Path) -> None:
    """Other names, files and symbolic links are not looked into, whatever their age."""
    parent = settings.runtime / "b"
    parent.mkdir(parents=True)
    (parent / "vb-0123456789x").mkdir()
    (parent / "notes").mkdir()
    (parent / "vb-1111111111").write_text("a file")
    precious = tmp_path / "precious"
    precious.mkdir()
    age(precious, UNFINISHED_S + 60)
    (parent / "vb-2222222222").symlink_to(precious)
    assert found(settings) == []


def test_only_our_programs_are_ended(tmp_path: Path) -> None:
    """A process that merely names the box's directory is not ours to kill; a vsock device is."""
    box_dir = tmp_path / BOX
    other_dir = tmp_path / f"{BOX}0"
    nap = "import time; time.sleep(1000)"
    bystander = subprocess.Popen([sys.executable, "-c", nap, str(box_dir / "vu")])
    device = subprocess.Popen([sys.executable, "-c", f"# {processes.DEVICE_MODULE}\n{nap}", str(box_dir / "vu")])
    stranger = subprocess.Popen(
        [sys.executable, "-c", f"# {processes.DEVICE_MODULE}\n{nap}", str(other_dir / "vu")]
    )
    try:
        assert processes.end_box(box_dir) == [device.pid]
        assert device.wait(5) == -9
        assert bystander.poll() is None
        assert stranger.poll() is None
    finally:
        for process in (bystander, device, stranger):
            process.kill()
            process.wait()
