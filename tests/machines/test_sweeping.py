"""What a sweep removes besides domains, with stand-ins for QEMU; real ones are in test_sweep.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab.machines import BoxDirs, Owner, claim, processes
from voidbox_lab.machines.apartdirs import claim_home
from voidbox_lab.machines.boxdirs import OWNER_FILE
from voidbox_lab.machines.sweeping import sweep
from voidbox_lab.settings import Settings

BOX = "vb-0123456789"
NAP = f"# {processes.DEVICE_MODULE}\nimport time; print(flush=True); time.sleep(1000)"
Worker = Callable[[Path], subprocess.Popen[bytes]]


class NoDomains:
    """A libvirt that knows of nothing, as the embedded driver of another root."""

    def listAllDomains(self, _flags: int) -> list[Any]:  # noqa: N802 - libvirt's name
        """None."""
        return []


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home in the test's directory."""
    home = Settings(
        cache=tmp_path / "cache",
        data=tmp_path / "data",
        runtime=tmp_path / "run" / "voidbox",
        shm=tmp_path / "shm" / "voidbox",
    )
    return home.prepare()


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Starts what passes for a box's process that works below a directory."""
    started: list[subprocess.Popen[bytes]] = []

    def start(directory: Path) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", NAP, str(directory / "vu")]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()  # a process has no command line yet at the very moment of its exec
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def dead(settings: Settings) -> Owner:
    """An owner of `BOX` that runs no more."""
    me = Owner.current(settings, BOX)
    return replace(me, start_time=me.start_time + 1)


def test_a_dead_box_of_another_home(settings: Settings, worker: Worker) -> None:
    """Its process is ended where its owner's mark in the shared cache says; then that mark goes."""
    away = replace(settings, runtime=settings.runtime.with_name("away"), shm=settings.shm.with_name("away"))
    dirs = claim(away, dead(away))
    orphan = worker(dirs.runtime)
    assert sweep(NoDomains(), settings) == [BOX]
    assert orphan.wait(5) == -9
    assert not dirs.cache.exists()


def test_a_dead_box_of_this_home(settings: Settings, worker: Worker) -> None:
    """All three directories and the process that works in them."""
    dirs = claim(settings, dead(settings))
    orphan = worker(dirs.runtime)
    assert sweep(NoDomains(), settings) == [BOX]
    assert orphan.wait(5) == -9
    assert not any(path.exists() for path in (dirs.runtime, dirs.cache, dirs.memory))


def test_the_living_are_left_alone(settings: Settings, worker: Worker) -> None:
    """Whichever home they have."""
    away = replace(settings, runtime=settings.runtime.with_name("away"), shm=settings.shm.with_name("away"))
    dirs = claim(away, Owner.current(away, BOX))
    process = worker(BoxDirs.of(away, BOX).runtime)
    assert sweep(NoDomains(), settings) == []
    assert process.poll() is None
    assert dirs.cache.exists()


def test_a_dead_home_beside_this_one(settings: Settings, worker: Worker) -> None:
    """With whatever runs in it."""
    home = claim_home(settings)
    orphan = worker(home.runtime / "b" / BOX)
    for path in (home.runtime, home.shm):
        (path / OWNER_FILE).write_text(json.dumps(dead(home).attributes()))
    assert sweep(NoDomains(), settings) == []
    assert orphan.wait(5) == -9
    assert not any(path.exists() for path in (home.runtime, home.shm))
