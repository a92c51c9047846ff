"""A saved machine of a few pages, kept in a store of its own, and processes that use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from voidbox_lab.machines.templates.store import Template, TemplateStore

from ..guests import child_environ
from . import other_process
from .other_process import KEY, sources

Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with the files of a saved machine: memory with holes, a scratch disk, a state."""
    directory = tmp_path / "saved"
    directory.mkdir()
    memory, scratch, state = sources(directory)
    with memory.open("wb") as file:
        file.truncate(1 << 20)
        for page in (0, 7, 8, 200):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    with scratch.open("wb") as file:
        file.truncate(1 << 18)
        file.seek(50_000)
        file.write(b"scratch")
    state.write_bytes(os.urandom(10_000))
    return directory


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    """A store that does not exist yet."""
    return TemplateStore(tmp_path / "cache" / "templates")


@pytest.fixture
def template(store: TemplateStore, saved: Path) -> Template:
    """The saved machine, kept."""
    return store.put(KEY, *sources(saved))


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts `other_process`; none is left at the end."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(other_process.__file__)), *map(str, arguments)]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, env=child_environ(), stdin=pipe, stdout=pipe, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def heard(process: subprocess.Popen[str]) -> str:
    """The next line of `process`; its end is an empty one."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
