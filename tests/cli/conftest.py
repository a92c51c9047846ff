"""The command as a process of its own, against a real daemon process over the fake backend, its store filled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.daemon.test_life import daemons, until
from voidbox_lab.client import Client, launch
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Model, RunSpec, Stage, VoidBoxSpec
from voidbox_lab.spec.events import Body
from voidbox_lab.store import Entry
from voidbox_lab.store.opening import open_store

VOIDBOX = (sys.executable, "-m", "voidbox_lab.cli")


@dataclass
class Place:
    """A home with a daemon, and what is known of the runs in its store."""

    settings: Settings
    env: dict[str, str]

    def voidbox(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``voidbox ARGS`` to its end."""
        options = {"capture_output": True, "text": True, "timeout": 60, **options}
        return subprocess.run([*VOIDBOX, *args], env=self.env, check=False, **options)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """``voidbox ARGS``, begun."""
        return subprocess.Popen(
            [*VOIDBOX, *args], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def json(self, *args: str) -> Any:
        """The one document that ``voidbox ARGS --json`` prints, successfully."""
        done = self.voidbox(*args, "--json")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    def client(self) -> Client:
        """A client of the daemon, to enter."""
        return Client(self.settings, env={})


def box(name: str, **options: Any) -> VoidBoxSpec:
    """An agent that does as the fake backend's script for `name` says."""
    return VoidBoxSpec(name=name, prompt="p", model=Model.parse("scripted:x"), **options)


def spec(*names: str, name: str | None = None, **options: Any) -> RunSpec:
    """A run of these stages, side by side."""
    return RunSpec(stages=tuple(Stage(box=box(n, **options)) for n in names), name=name)


def fill(settings: Settings, run: str, of: RunSpec, events: Sequence[tuple[str | None, Body]]) -> None:
    """Put a run into the store of `settings`, which no daemon has open."""

    async def write() -> None:
        store = await open_store("sqlite", settings.data)
        at = time.time()
        await store.create_run(run, of, at=at)
        for start in range(0, len(events), 1000):
            await store.append(run, [Entry(body, stage, at) for stage, body in events[start : start + 1000]])
        await store.aclose()

    anyio.run(write)


@pytest.fixture(scope="module")
def home() -> Iterator[Place]:
    """A home without a daemon; whatever daemon runs there at the end is killed."""
    with pytest.MonkeyPatch.context() as patch:
        root = Path(tempfile.mkdtemp(prefix="voidbox-cli-"))
        patch.setenv("VOIDBOX_HOME", str(root))
        for name in ("VOIDBOX_CACHE", "VOIDBOX_DAEMON", "ANTHROPIC_API_KEY"):
            patch.delenv(name, raising=False)
        patch.setattr(launch, "MODULE", "tests.daemon.serving")
        patch.setenv("VOIDBOX_IDLE_S", "300")
        settings = Settings.from_env().prepare()
        yield Place(settings, {**os.environ, "VOIDBOX_HOME": str(root), "COLUMNS": "200"})
        for pid in daemons(settings):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not daemons(settings), 5)
        shutil.rmtree(settings.runtime, ignore_errors=True)
        shutil.rmtree(root)
