"""A home apart: private, marked, and gone however the process that has it ends. No guest is booted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

import voidbox_lab
from voidbox_lab.box.apart import apart
from voidbox_lab.errors import UserError
from voidbox_lab.machines.apartdirs import sweep_homes
from voidbox_lab.machines.boxdirs import UNFINISHED_S
from voidbox_lab.machines.owner import process_start_time
from voidbox_lab.settings import Settings

PROGRAM = Path(__file__).with_name("apart_process.py")


def _dispositions(background: bool) -> None:
    """As a shell starts a command, whatever these tests were started by (nohup, say)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Working:
    """A process in its home apart, and what passes for a QEMU there."""

    process: subprocess.Popen[str]
    places: list[Path]
    orphan: int

    def end(self, number: int) -> int:
        """Send the signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)


@dataclass
class User:
    """A user's settings, and processes that have them too."""

    settings: Settings
    environ: dict[str, str]
    begun: list[Working] = field(default_factory=list)

    def begin(self, *, background: bool = False) -> Working:
        """Start one and wait until it is there; as a shell's background job, which ignores SIGINT, or not."""
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            env=self.environ,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=partial(_dispositions, background),
        )
        assert process.stdout is not None
        said = json.loads(process.stdout.readline() or "{}")
        self.begun.append(Working(process, [Path(place) for place in said["places"]], said["orphan"]))
        return self.begun[-1]


@pytest.fixture
def user() -> Iterator[User]:
    """With directories that nobody else sweeps."""
    with tempfile.TemporaryDirectory(prefix="vbt", dir="/tmp") as directory:
        environ = {
            **os.environ,
            "VOIDBOX_HOME": f"{directory}/home",
            "XDG_RUNTIME_DIR": directory,
            "PYTHONPATH": str(Path(voidbox_lab.__file__).parent.parent),
        }
        settings = Settings.from_env(environ).prepare()
        user = User(settings, environ)
        yield user
        for working in user.begun:
            working.process.kill()
            working.process.communicate()
        sweep_homes(settings)
        assert list(settings.shm.iterdir()) == []
        settings.shm.rmdir()
        settings.shm.parent.rmdir()


def test_a_home_of_ones_own(user: User) -> None:
    """Private directories beside the user's, which are gone afterwards; the rest is the user's."""
    with apart(user.settings) as settings:
        assert (settings.cache, settings.data) == (user.settings.cache, user.settings.data)
        assert settings.runtime.parent == user.settings.runtime.parent
        for path in (settings.runtime, settings.shm):
            assert path.stat().st_mode & 0o777 == 0o700
    assert not settings.runtime.exists()
    assert not settings.shm.exists()


def test_what_comes_back(user: User) -> None:
    """libvirt's driver makes its directory anew a moment after it was closed."""
    with apart(user.settings) as settings:
        root = settings.runtime / "lv"
        root.mkdir()
        again = threading.Timer(0.2, lambda: (root / "run").mkdir(parents=True))
        again.start()
    again.join()
    assert not settings.runtime.exists()


def test_handlers_are_put_back(user: User) -> None:
    """SIGTERM is the caller's again; one that is ignored stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with apart(user.settings):
            assert callable(signal.getsignal(signal.SIGTERM))
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "background"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, True)],
)
def test_asked_to_end(user: User, number: signal.Signals, background: bool) -> None:
    """It leaves by the front door: nothing stays, and no sweep is needed."""
    working = user.begin(background=background)
    assert all(place.is_dir() for place in working.places)
    working.end(number)
    assert not any(place.exists() for place in working.places)
    assert process_start_time(working.orphan) is None


@pytest.mark.parametrize("sweeper", ["sweep", "next"])
def test_killed(user: User, sweeper: str) -> None:
    """Without a word: a sweep, or whoever works apart next, ends what runs there and removes it."""
    working = user.begin()
    assert working.end(signal.SIGKILL) == -signal.SIGKILL
    assert all(place.is_dir() for place in working.places)
    assert process_start_time(working.orphan) is not None
    if sweeper == "sweep":
        assert sorted(sweep_homes(user.settings)) == sorted(working.places)
    else:
        with apart(user.settings):
            pass
    assert not any(place.exists() for place in working.places)
    assert process_start_time(working.orphan) is None


def test_the_living_keep_theirs(user: User) -> None:
    """Two at once do not sweep each other."""
    working = user.begin()
    with apart(user.settings):
        assert sweep_homes(user.settings) == []
    assert all(place.is_dir() for place in working.places)
    assert process_start_time(working.orphan) is not None


def test_nothing_else_is_a_home_apart(user: User, tmp_path: Path) -> None:
    """Other names, symbolic links and files stay; a directory without a mark goes when it is old."""
    parent, old = user.settings.runtime.parent, UNFINISHED_S + 60
    for name in ("vba-notes", "vba-0123456789", "vba-00000000", "vba-11111111"):
        (parent / name).mkdir()
    (parent / "vba-22222222").write_text("a file")
    (parent / "vba-33333333").symlink_to(tmp_path)
    for name in ("vba-notes", "vba-0123456789", "vba-11111111"):
        moment = (parent / name).stat().st_mtime - old
        os.utime(parent / name, (moment, moment))
    assert sweep_homes(user.settings) == [parent / "vba-11111111"]


def test_a_directory_in_the_way(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, and no half of a home stays."""
    monkeypatch.setattr("secrets.token_hex", lambda _count: "0" * 8)
    (user.settings.shm / "apart-00000000").write_text("a file")
    with pytest.raises(UserError, match="cannot be made"), apart(user.settings):
        raise AssertionError
    assert [path.name for path in user.settings.shm.iterdir()] == ["apart-00000000"]
    assert not list(user.settings.runtime.parent.glob("*vba-*"))
    (user.settings.shm / "apart-00000000").unlink()
