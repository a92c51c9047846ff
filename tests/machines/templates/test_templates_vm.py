"""Real templates that go bad, and real processes that die while they make one: the box comes up all the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.box import Box, Boxes
from voidbox_lab.machines import Hypervisor, Template, TemplateStore
from voidbox_lab.machines.templates import resident
from voidbox_lab.machines.templates.store import META
from voidbox_lab.settings import Settings

from ..conftest import home_settings
from ..guests import child_environ, qemus
from . import vm_process

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

MEMORY_MB = 144
"""No other test's, so that what lies in the tmpfs is this module's own."""


@pytest.fixture(scope="module")
async def original(
    settings: Settings, hypervisor: Hypervisor, tmp_path_factory: pytest.TempPathFactory
) -> Template:
    """A good template; tests damage copies of it."""
    await run_sync(images.build, settings)
    root = tmp_path_factory.mktemp("templates")
    async with opened(settings, hypervisor, root) as boxes:
        return await boxes.templates.build(await boxes.recipe(memory_mb=MEMORY_MB))


@asynccontextmanager
async def opened(settings: Settings, hypervisor: Hypervisor, root: Path) -> AsyncIterator[Boxes]:
    """Boxes without spares, their templates in `root`."""
    async with Boxes(replace(settings, spares=0), hypervisor) as boxes:
        boxes.templates.store = TemplateStore(root)
        yield boxes


@pytest.fixture
async def boxes(
    settings: Settings, hypervisor: Hypervisor, original: Template, tmp_path: Path
) -> AsyncIterator[Boxes]:
    """Boxes with a copy of the good template; nothing of it is in memory at the end."""
    shutil.copytree(original.path, tmp_path / "t" / original.digest)
    async with opened(settings, hypervisor, tmp_path / "t") as made:
        yield made
    assert not (settings.shm / "t" / original.digest).exists()


async def works(boxes: Boxes) -> Box:
    """Open a box, see that it does what a box does, close it."""
    async with await boxes.open(memory_mb=MEMORY_MB) as box:
        assert (await box.run(["uname", "-n"])).stdout.decode().strip() == box.id
    assert qemus(box.id) == []
    return box


def flip(path: Path) -> None:
    """Flip one byte in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


def is_sentence(text: str) -> bool:
    """One line, one full stop at its end, of the length that a notebook shows."""
    return (
        text.endswith(".")
        and not text.endswith("..")
        and ". " not in text
        and "\n" not in text
        and len(text) < 400
    )


async def test_the_copy_is_good(boxes: Boxes, original: Template) -> None:
    """Undamaged it is used as it is, so what the other tests see is the damage's doing."""
    assert (await works(boxes)).facts.start == "clone"
    assert boxes.templates.store.find(original.digest) is not None
    assert boxes.templates.store.all()[0].made == original.made


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path / "memory.pages", (path / "memory.pages").stat().st_size // 2),
        lambda path: flip(path / "memory.pages"),
    ],
    ids=["cut short", "a flipped byte"],
)
async def test_a_damaged_file(boxes: Boxes, original: Template, damage: Callable[[Path], None]) -> None:
    """The template is made anew, and the box is a clone of the new one."""
    damage(boxes.templates.store.root / original.digest)
    box = await works(boxes)
    assert (box.facts.start, box.facts.start_note) == ("clone", "")
    (template,) = boxes.templates.store.all()
    assert (template.digest, template.made > original.made) == (original.digest, True)


async def test_a_state_that_qemu_refuses(boxes: Boxes, original: Template) -> None:
    """Its digest is right, its content is not: this box boots and says why, the next is a clone again."""
    path = boxes.templates.store.root / original.digest
    state = os.urandom(original.files["state"].size)
    (path / "state").write_bytes(state)
    meta = json.loads((path / META).read_text())
    meta["files"]["state"]["sha256"] = hashlib.sha256(state).hexdigest()
    (path / META).write_text(json.dumps(meta))
    box = await works(boxes)
    assert box.facts.start == "cold"
    assert is_sentence(box.facts.start_note), box.facts.start_note
    assert boxes.templates.store.find(original.digest) is None
    again = await works(boxes)
    assert (again.facts.start, again.facts.start_note) == ("clone", "")


@pytest.mark.parametrize("loaded", [False, True], ids=["for the template", "for a clone"])
async def test_no_room_in_memory(boxes: Boxes, monkeypatch: pytest.MonkeyPatch, loaded: bool) -> None:
    """The box boots and says what to do; the template is not to blame."""
    if loaded:
        if (await works(boxes)).facts.vsock != "user":
            pytest.skip("with the kernel's vsock a clone takes nothing of the tmpfs; see scripts/test-kvm")
        assert list((boxes._settings.shm / "t").glob(f"{boxes.templates.store.all()[0].digest}/memory"))
    monkeypatch.setattr(resident, "MARGIN", 1 << 60)
    box = await works(boxes)
    assert box.facts.start == "cold"
    assert is_sentence(box.facts.start_note), box.facts.start_note
    assert "make it larger" in box.facts.start_note
    assert len(boxes.templates.store.all()) == 1


async def test_a_large_machine(
    settings: Settings, hypervisor: Hypervisor, original: Template, tmp_path: Path
) -> None:
    """The kernel's reserves grow with the memory; scrubbing what is free leaves them alone."""
    async with opened(settings, hypervisor, tmp_path / "t") as boxes, await boxes.open(memory_mb=1024) as box:
        assert (box.facts.start, box.facts.start_note) == ("clone", "")
        (template,) = boxes.templates.store.all()
        assert template.size < 2 * original.size, "free memory was not scrubbed"


Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def homes(original: Template) -> Iterator[Callable[[], tuple[Settings, Begin]]]:
    """Makes homes, as of users on their first day, and starts processes in them."""
    running: list[subprocess.Popen[str]] = []
    made: list[tuple[Settings, Path]] = []

    def home() -> tuple[Settings, Begin]:
        directory = tempfile.mkdtemp(prefix="vbt")
        settings = home_settings(Path(directory))
        made.append((settings, Path(directory)))
        environ = child_environ(VOIDBOX_HOME=directory, VOIDBOX_CACHE=str(settings.cache))

        def begin(*arguments: object) -> subprocess.Popen[str]:
            command = [sys.executable, str(Path(vm_process.__file__)), *map(str, arguments)]
            running.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
            return running[-1]

        return settings, begin

    yield home
    for process in running:
        process.kill()
        process.communicate()
    for settings, directory in made:
        for path in (settings.runtime, settings.shm, directory):
            shutil.rmtree(path, ignore_errors=True)


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of `process`."""
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline() or "{}")
    assert "error" not in facts, facts
    return facts


def remains(settings: Settings) -> set[str]:
    """Boxes of a home of which anything is there; in the cache are others' too."""
    return {path.name for place in (settings.runtime, settings.shm) for path in (place / "b").glob("vb-*")}


async def test_killed_while_making(homes: Callable[[], tuple[Settings, Begin]], tmp_path: Path) -> None:
    """At three moments. The next process sweeps domain, QEMU, directories and memory of all, and makes it."""
    settings, begin = homes()
    boxes: list[str] = []
    for moment in ("booting", "saving", "keeping"):
        process = begin("hang", moment, tmp_path / "t", MEMORY_MB)
        assert told(process) == {"moment": moment}
        process.kill()
        process.wait()
        (box,) = remains(settings) - set(boxes)
        boxes.append(box)
        assert (settings.shm / "b" / box / "ram").stat().st_size == MEMORY_MB << 20
    assert TemplateStore(tmp_path / "t").all() == []
    facts = told(begin("open", tmp_path / "t", MEMORY_MB))
    assert set(facts["swept"]) >= set(boxes)
    assert (facts["owned"], facts["left"]) == ([], [])
    assert len(facts["made"]) == 1
    assert (facts["start"], facts["same"]) == ("clone", True)
    assert [qemus(box) for box in boxes] == [[], [], []]
    assert remains(settings) == set()
    assert not any((settings.cache / "boxes" / box).exists() for box in boxes)
    assert len(TemplateStore(tmp_path / "t").all()) == 1


async def test_two_processes_make_one(homes: Callable[[], tuple[Settings, Begin]], tmp_path: Path) -> None:
    """Both ask at the same time: one makes it, the other waits for it; both have a clone."""
    processes = [homes()[1]("open", tmp_path / "t", MEMORY_MB) for _ in range(2)]
    facts = [told(process) for process in processes]
    assert sorted(len(fact["made"]) for fact in facts) == [0, 1]
    assert [(fact["start"], fact["note"], fact["same"]) for fact in facts] == [("clone", "", True)] * 2
    assert len(TemplateStore(tmp_path / "t").all()) == 1
