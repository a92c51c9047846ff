"""Crashes: what a killed process leaves behind is found and removed by the next, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab.images import Image
from voidbox_lab.machines import BoxDirs, Owner, claim
from voidbox_lab.settings import Settings

from . import guests
from .conftest import home_settings

pytestmark = pytest.mark.vm

PROGRAM = Path(__file__).with_name("other_process.py")


@dataclass
class Home:
    """A home of its own and the processes that work in it."""

    settings: Settings
    environ: dict[str, str]
    running: list[subprocess.Popen[str]]

    def begin(self, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """Start the other process; its first line."""
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments], env=self.environ, stdout=subprocess.PIPE, text=True
        )
        self.running.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline() or "{}")


@pytest.fixture
def home(image: Image) -> Iterator[Home]:
    """Like a user's first day; at its end no process of it runs."""
    with tempfile.TemporaryDirectory(prefix="vbt") as directory:
        settings = home_settings(Path(directory))
        environ = guests.child_environ(VOIDBOX_HOME=directory, VOIDBOX_CACHE=str(settings.cache))
        home = Home(settings, environ, [])
        yield home
        for process in home.running:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        assert home.begin("sweep")[1].get("owned") == []
        home.running[-1].wait()
        shutil.rmtree(settings.runtime)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Wait for `condition`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


def test_after_kill_9(home: Home) -> None:
    """The owner dies without a word; the next process removes domain, QEMU and files, and spares the living."""
    living = claim(home.settings, Owner.current(home.settings, guests.new_box()))
    try:
        process, started = home.begin("start", guests.IDLE)
        box = started["box"]
        dirs = BoxDirs.of(home.settings, box)
        process.kill()
        process.wait()
        if started["uri"].startswith("qemu:///embed"):
            assert guests.qemus(box) == [started["pid"]], (
                "without a daemon the orphan runs on, until somebody sweeps"
            )
        assert dirs.runtime.exists()
        _, swept = home.begin("sweep")
        assert (box in swept["swept"], swept["owned"]) == (True, [])
        assert guests.qemus(box) == []
        assert not dirs.runtime.exists()
        assert not dirs.cache.exists()
        assert living.runtime.exists()
        assert living.cache.exists()
    finally:
        living.remove()


def test_an_orphan_that_libvirt_forgot(home: Home) -> None:
    """With libvirt's own state lost, the owner's mark in the box's directory still leads to the QEMU."""
    process, started = home.begin("start", guests.IDLE)
    process.kill()
    process.wait()
    if started["uri"].startswith("qemu:///embed"):
        for path in (home.settings.runtime / "lv" / "run" / "qemu").glob("vb-*"):
            path.unlink()
    else:  # a session daemon ends the domain itself (AUTODESTROY); the directories stay for us
        wait_for(lambda: guests.qemus(started["box"]) == [], "libvirt destroys the domain")
    _, swept = home.begin("sweep")
    assert (started["box"] in swept["swept"], swept["owned"]) == (True, [])
    wait_for(lambda: guests.qemus(started["box"]) == [], "QEMU ends")


def test_two_processes(home: Home) -> None:
    """The embedded driver is one process's: the second is told which. A session daemon serves both; neither
    sweeps the other's box."""
    _, started = home.begin("start", guests.IDLE)
    _, second = home.begin("sweep")
    if started["uri"].startswith("qemu:///embed"):
        assert second["error"]["type"] == "Unavailable"
        assert second["error"]["cause"] == "in-use"
        assert f"pid {home.running[0].pid}" in second["error"]["message"]
    else:
        assert started["box"] not in second["swept"]
        assert [owner["box"] for owner in second["owned"]] == [started["box"]]
    assert guests.qemus(started["box"]) == [started["pid"]]


def test_directories_without_a_domain(home: Home) -> None:
    """A process that died between claiming its directories and starting its domain."""
    me = Owner.current(home.settings, guests.new_box())
    dead = replace(me, start_time=me.start_time + 1)
    dirs = claim(home.settings, dead)
    _, swept = home.begin("sweep")
    assert dead.box in swept["swept"]
    assert not dirs.runtime.exists()
    assert not dirs.cache.exists()


def test_strangers_are_left_alone(home: Home, image: Image) -> None:
    """A QEMU and a domain that are not ours, in the same libvirt, survive a sweep."""
    program = (
        "import sys, libvirt; from voidbox_lab.machines import embed; from voidbox_lab.settings import Settings\n"
        "import os; settings = Settings.from_env().prepare()\n"
        "root = settings.runtime / 'lv'\n"
        "uri = 'qemu:///session' if os.getuid() else embed.uri_of(root)\n"
        "embed.prepare(root, settings.cache)\n"
        "libvirt.virEventRegisterDefaultImpl()\n"
        "domain = libvirt.open(uri).createXML(sys.argv[1], 0)\n"
        "print(domain.name(), flush=True)\n"
    )
    name = guests.new_box()
    xml = (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><os><type arch='x86_64' "
        "machine='q35'>hvm</type></os><devices><memballoon model='none'/></devices></domain>"
    )
    started = subprocess.run(
        [sys.executable, "-c", program, xml],
        env=home.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.stdout.strip() == name, started.stderr
    (pid,) = guests.qemus(name)
    try:
        _, swept = home.begin("sweep")
        assert (name in swept["swept"], swept["owned"]) == (False, [])
        assert guests.qemus(name) == [pid]
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
        wait_for(lambda: guests.qemus(name) == [], "the stranger ends")
