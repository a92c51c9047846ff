"""Templates on disk: whole or not there, whoever dies or fills the disk meanwhile."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.machines.templates import pages
from voidbox_lab.machines.templates import store as store_module
from voidbox_lab.machines.templates.store import META, PART_LIFETIME_S, Key, Template, TemplateStore

from .conftest import Begin, heard
from .other_process import KEY, sources


def entries(store: TemplateStore) -> list[str]:
    """Names in the store, lock files left out."""
    return sorted(path.name for path in store.root.iterdir() if path.suffix != ".lock")


def keep(store: TemplateStore, saved: Path, image: str, used: float) -> Template:
    """One more template, last used so many seconds after the epoch."""
    template = store.put(replace(KEY, image=image), *sources(saved))
    os.utime(template.path / META, (used, used))
    return replace(template, used=used)


@pytest.mark.parametrize(
    "change",
    [
        {"image": "sha256:j"},
        {"memory_mb": 2},
        {"vcpus": 2},
        {"accelerator": "kvm"},
        {"emulator": "/usr/bin/qemu:1:3"},
        {"qemu": "7.2.1"},
        {"libvirt": "9.0.1"},
        {"recipe": "s"},
        {"processor": "q"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_in_a_key_counts(change: dict[str, Any]) -> None:
    """Whatever changes, it is another template."""
    assert replace(KEY, **change).digest != KEY.digest
    assert Key(**KEY.__dict__).digest == KEY.digest
    assert len(KEY.digest) == 32


def test_the_format_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version never takes an earlier one's for its own."""
    before = KEY.digest
    monkeypatch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
    assert KEY.digest != before


def test_put_and_find(store: TemplateStore, saved: Path) -> None:
    """What was kept is found by its digest, private, with sizes and digests as on disk."""
    assert store.find(KEY.digest) is None
    assert store.all() == []
    began = time.time()
    template = store.put(KEY, *sources(saved))
    assert template == store.find(KEY.digest) == store.all()[0]
    assert began <= template.made <= time.time()
    assert template.key == KEY.__dict__
    assert template.size == sum(path.stat().st_size for path in template.path.iterdir() if path.name != META)
    assert entries(store) == [KEY.digest]
    assert template.path.stat().st_mode & 0o777 == 0o700
    assert store.root.stat().st_mode & 0o777 == 0o700
    pages.unpack(template.path / "memory.pages", saved / "back", template.files["memory.pages"].sha256)
    assert (saved / "back").read_bytes() == (saved / "memory").read_bytes()
    assert (template.path / "state").read_bytes() == (saved / "state").read_bytes()


def test_touched_is_used(store: TemplateStore, saved: Path) -> None:
    """The last load decides the order, not the making; touching what is gone is fine."""
    old, new = keep(store, saved, "old", 1000), keep(store, saved, "new", 2000)
    assert [t.digest for t in store.all()] == [new.digest, old.digest]
    store.touch(old)
    assert [t.digest for t in store.all()] == [old.digest, new.digest]
    assert store.all()[0].used == pytest.approx(time.time(), abs=60)
    store.discard(old.digest)
    store.touch(old)
    assert store.find(old.digest) is None


def test_the_least_recently_used_go(store: TemplateStore, saved: Path) -> None:
    """Until the cap holds; the digest to spare stays even if it alone is too large."""
    made = [keep(store, saved, str(number), 1000 + number) for number in range(4)]
    size = made[0].size
    assert store.prune(4 * size) == []
    assert {t.digest for t in store.prune(2 * size)} == {made[0].digest, made[1].digest}
    assert [t.digest for t in store.all()] == [made[3].digest, made[2].digest]
    assert [t.digest for t in store.prune(2 * size - 1)] == [made[2].digest]
    assert store.prune(0, keep=made[3].digest) == []
    assert [t.digest for t in store.prune(0)] == [made[3].digest]
    assert entries(store) == []


def test_the_one_to_spare_counts(store: TemplateStore, saved: Path) -> None:
    """Its bytes are in the cap whoever was used after it."""
    spared, other = keep(store, saved, "spared", 1000), keep(store, saved, "other", 2000)
    assert store.prune(spared.size + other.size - 1, keep=spared.digest) == [other]
    assert store.all() == [spared]


def damage_meta(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A change of the JSON in a template's directory."""

    def apply(path: Path) -> None:
        data = json.loads((path / META).read_text())
        change(data)
        (path / META).write_text(json.dumps(data))

    return apply


DAMAGE: dict[str, Callable[[Path], object]] = {
    "memory cut short": lambda path: os.truncate(path / "memory.pages", 100),
    "memory longer": lambda path: os.truncate(path / "memory.pages", 1 << 20),
    "scratch gone": lambda path: (path / "scratch.pages").unlink(),
    "state gone": lambda path: (path / "state").unlink(),
    "no json": lambda path: (path / META).unlink(),
    "empty json": lambda path: (path / META).write_text(""),
    "half a json": lambda path: os.truncate(path / META, 50),
    "no text": lambda path: (path / META).write_bytes(b"\xff\xfe\0"),
    "too deep": lambda path: (path / META).write_text("[" * 60_000),
    "a list": lambda path: (path / META).write_text("[]"),
    "null": lambda path: (path / META).write_text("null"),
    "endless": lambda path: os.truncate(path / META, 1 << 30),
    "json is a directory": lambda path: ((path / META).unlink(), (path / META).mkdir()),
    "another format": damage_meta(lambda data: data.update(format=99)),
    "no format": damage_meta(lambda data: data.pop("format")),
    "no key": damage_meta(lambda data: data.pop("key")),
    "files are none": damage_meta(lambda data: data.update(files=None)),
    "files are a list": damage_meta(lambda data: data.update(files=["state"])),
    "another file": damage_meta(lambda data: data["files"].update(more={"sha256": "", "size": 0})),
    "a file less": damage_meta(lambda data: data["files"].pop("state")),
    "a file without size": damage_meta(lambda data: data["files"]["state"].pop("size")),
    "an infinite size": damage_meta(lambda data: data["files"]["state"].update(size=float("inf"))),
    "made at no time": damage_meta(lambda data: data.update(made="once")),
    "made too late": damage_meta(lambda data: data.update(made=10**400)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_not_whole_is_not_there(
    store: TemplateStore, saved: Path, template: Template, damage: Callable[[Path], object]
) -> None:
    """Not found, not listed; pruned, the whole ones kept; and made again over it."""
    whole = keep(store, saved, "whole", 1000)
    damage(template.path)
    assert store.find(template.digest) is None
    assert store.all() == [whole]
    again = store.put(KEY, *sources(saved))
    assert store.find(KEY.digest) == again
    damage(template.path)
    store.prune(1 << 40)
    assert entries(store) == [whole.digest]


def test_unfinished_parts(store: TemplateStore, template: Template) -> None:
    """A directory that is being filled is nobody's template; it goes once nobody can be filling it."""
    part = store.root / ".part-abc"
    part.mkdir()
    (part / "memory.pages").write_bytes(b"x")
    assert store.all() == [template]
    store.prune(1 << 40)
    assert part.exists()
    old = time.time() - PART_LIFETIME_S - 60
    os.utime(part, (old, old))
    store.prune(1 << 40)
    assert entries(store) == [template.digest]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("where", ["pack", "_copy", "mkdtemp", "fsync", "rename"])
def test_a_full_disk(
    store: TemplateStore, saved: Path, template: Template, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    """Wherever it fails: one sentence, cause ``disk``, and nothing of the attempt is left."""

    def full(*_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number))

    key = replace(KEY, image="another")
    target = {
        "pack": (pages, "pack"),
        "_copy": (store_module, "_copy"),
        "mkdtemp": (store_module.tempfile, "mkdtemp"),
        "fsync": (os, "fsync"),
        "rename": (Path, "rename"),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        with pytest.raises(ProviderError) as caught:
            store.put(key, *sources(saved))
    assert caught.value.cause == "disk"
    assert os.strerror(number) in caught.value.message
    assert caught.value.message.count(".") - str(store.root).count(".") == 1
    assert entries(store) == [template.digest]
    assert store.put(key, *sources(saved)).digest == key.digest


def test_no_directory_can_be_made(tmp_path: Path, saved: Path) -> None:
    """The cache is a file: typed from every side, never an error of the system."""
    (tmp_path / "cache").write_text("in the way")
    store = TemplateStore(tmp_path / "cache" / "templates")
    with pytest.raises(ProviderError) as caught:
        store.put(KEY, *sources(saved))
    assert caught.value.cause == "disk"
    with pytest.raises(ProviderError) as caught, store.making(KEY.digest, 1):
        pass
    assert caught.value.cause == "disk"
    store.discard(KEY.digest)
    assert (store.all(), store.prune(0), store.find(KEY.digest)) == ([], [], None)


def test_discard(store: TemplateStore, template: Template) -> None:
    """Whole or not, there or not."""
    store.discard(template.digest)
    store.discard(template.digest)
    assert entries(store) == []
    assert store.find(template.digest) is None


def test_killed_while_it_keeps(store: TemplateStore, saved: Path, begin: Begin) -> None:
    """SIGKILL in the middle leaves a part, which prune removes in time; the next attempt works at once."""
    process = begin("put", store.root, saved)
    assert heard(process) == "middle"
    process.kill()
    process.wait()
    (part,) = entries(store)
    assert part.startswith(".part-")
    assert (store.root / part / "memory.pages").stat().st_size > 0
    assert store.find(KEY.digest) is None
    template = store.put(KEY, *sources(saved))
    assert store.all() == [template]
    store.prune(1 << 40)
    assert part in entries(store)
    old = time.time() - PART_LIFETIME_S - 60
    os.utime(store.root / part, (old, old))
    store.prune(1 << 40)
    assert entries(store) == [KEY.digest]


def test_one_of_several_makes_it(store: TemplateStore, saved: Path, begin: Begin) -> None:
    """Who comes second waits and finds it."""
    processes = [begin("making", store.root, saved) for _ in range(3)]
    assert [heard(process) for process in processes] == ["asked"] * 3
    assert sorted(heard(process) for process in processes) == ["found", "found", "made"]
    assert [t.digest for t in store.all()] == [KEY.digest]


def test_waiting_for_the_maker_has_an_end(store: TemplateStore, saved: Path, begin: Begin) -> None:
    """The bound is in the error; a killed maker lets go at once."""
    process = begin("put", store.root, saved)
    assert heard(process) == "middle"
    holder = store.making(KEY.digest, 1)
    with holder:
        with pytest.raises(LimitExceeded, match=r"0\.1 s") as caught, store.making(KEY.digest, 0.1):
            pass
        assert caught.value.limit == "time"
        with store.making("another", 0.1):
            pass
    with store.making(KEY.digest, 0.1):
        pass
