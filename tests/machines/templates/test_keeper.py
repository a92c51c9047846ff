"""Which template a process uses, without a VM: found, made once, made again when bad, given up when that fails."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.machines.templates import keeper, resident
from voidbox_lab.machines.templates.keeper import PATIENCE_S, Templates
from voidbox_lab.machines.templates.make import Recipe
from voidbox_lab.settings import Settings

from .other_process import KEY, sources

pytestmark = pytest.mark.anyio


class Maker:
    """Stands for `make.make`: keeps the saved files under the recipe's key."""

    def __init__(self, saved: Path) -> None:
        self.saved, self.calls = saved, 0
        self.before: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint

    async def __call__(self, _settings: object, _hypervisor: object, store: Any, recipe: Any, **_: object) -> Any:
        """One template."""
        self.calls += 1
        await self.before()
        return store.put(recipe.key(None), *sources(self.saved))


@pytest.fixture
def maker(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """No VM is booted for a template."""
    maker = Maker(saved)
    monkeypatch.setattr(keeper, "make", maker)
    monkeypatch.setattr(resident, "MARGIN", 0)
    return maker


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    """A process's templates in a home of its own."""
    roots = {name: tmp_path / name for name in ("cache", "data", "runtime", "shm")}
    for path in roots.values():
        path.mkdir(mode=0o700)
    return Templates(Settings(**roots), cast("Any", None), b"", "")


def recipe(image: str = "sha256:i") -> Recipe:
    """A recipe with a key of its own and next to no memory."""
    key = replace(KEY, image=image)
    return cast("Recipe", SimpleNamespace(memory_mb=1, key=lambda _hypervisor: key))


async def test_made_once_and_shared(templates: Templates, maker: Maker) -> None:
    """Boxes that start together wait for one template, and later ones use it; another recipe has another."""
    found = []

    async def want() -> None:
        found.append(await templates.resident(recipe()))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(want)
    assert maker.calls == 1
    assert len({id(one) for one in found}) == 1
    assert await templates.resident(recipe("sha256:j")) is not found[0]
    assert maker.calls == 2
    await templates.aclose()
    assert not found[0].intact


@pytest.mark.parametrize("name", ["memory.pages", "scratch.pages", "state"])
async def test_a_damaged_one_is_made_again(templates: Templates, maker: Maker, name: str) -> None:
    """Sizes are right, a digest is not: the next box has a new one."""
    template = await templates.build(recipe())
    path = template.path / name
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    loaded = await templates.resident(recipe())
    assert loaded.intact
    assert maker.calls == 2
    await templates.aclose()


async def test_damage_that_cannot_be_removed(
    templates: Templates, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only cache keeps its bad template: a typed error, so that boxes boot without."""
    template = await templates.build(recipe())
    path = template.path / "state"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("voidbox_lab.machines.templates.store.tempfile.mkdtemp", read_only)
    with pytest.raises(ProviderError) as caught:
        await templates.resident(recipe())
    assert caught.value.cause == "template-damaged"
    assert maker.calls == 1


async def test_a_failure_is_remembered_for_a_while(
    templates: Templates, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes are not held up by an attempt each; with the same words, until patience is over."""

    async def fail() -> None:
        raise LimitExceeded("Not ready within 1 s.", limit="time", value=1, unit="s", cause="boot")

    maker.before = fail
    messages = []
    for _ in range(3):
        with pytest.raises(ProviderError) as caught:
            await templates.resident(recipe())
        messages.append(caught.value.message)
    assert messages == ["Not ready within 1 s."] * 3
    assert maker.calls == 1
    monkeypatch.setattr(keeper, "PATIENCE_S", 0.0)
    maker.before = anyio.lowlevel.checkpoint
    assert (await templates.resident(recipe())).intact
    assert (maker.calls, PATIENCE_S) == (2, 300.0)
    await templates.aclose()


async def test_one_that_does_not_restore(templates: Templates, maker: Maker) -> None:
    """It is made anew once; when the new one does not restore either, boxes boot without for a while."""
    first = await templates.resident(recipe())
    await templates.discard(first, "QEMU refused it.")
    assert templates.store.find(first.template.digest) is None
    second = await templates.resident(recipe())
    assert second is not first
    assert maker.calls == 2
    await templates.discard(second, "QEMU refused it again.")
    with pytest.raises(ProviderError, match=r"^QEMU refused it again\.$"):
        await templates.resident(recipe())
    assert maker.calls == 2


async def test_several_boxes_fail_with_one(templates: Templates, maker: Maker) -> None:
    """They tell of one bad template, not of the one that was made since."""
    first = await templates.resident(recipe())
    await templates.discard(first, "QEMU refused it.")
    second = await templates.resident(recipe())
    await templates.discard(first, "QEMU refused it.")
    assert await templates.resident(recipe()) is second
    assert templates.store.find(second.template.digest) is not None
    await templates.aclose()


async def test_what_changed_in_memory_is_loaded_anew(templates: Templates, maker: Maker) -> None:
    """Found at the next box; the template on disk is still good."""
    first = await templates.resident(recipe())
    (first.path / "memory").chmod(0o600)
    os.truncate(first.path / "memory", 4096)
    second = await templates.resident(recipe())
    assert second is not first
    assert second.intact
    assert maker.calls == 1
    await templates.aclose()


async def test_no_room_is_no_template(templates: Templates, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before one is made, which would need the room as well; nor does a vanished tmpfs get further."""
    monkeypatch.setattr(resident, "MARGIN", 1 << 60)
    with pytest.raises(ProviderError, match="make it larger") as caught:
        await templates.resident(recipe())
    assert caught.value.cause == "shm-full"
    templates._settings.shm.rmdir()
    with pytest.raises(ProviderError) as caught:
        await templates.resident(recipe("sha256:j"))
    assert caught.value.cause == "shm"
    assert maker.calls == 0


async def test_the_cap_is_kept(templates: Templates, maker: Maker) -> None:
    """Making one removes the least recently used beyond the cap, never itself."""
    templates._settings = replace(templates._settings, templates_mb=0)
    first = await templates.build(recipe())
    assert templates.store.all() == [first]
    second = await templates.build(recipe("sha256:j"))
    assert templates.store.all() == [second]


async def test_a_cancelled_maker_lets_go(templates: Templates, maker: Maker) -> None:
    """The next one to ask makes it."""
    maker.before = anyio.sleep_forever
    with anyio.move_on_after(0.05):
        await templates.resident(recipe())
    assert maker.calls == 1
    maker.before = anyio.lowlevel.checkpoint
    with anyio.fail_after(5):
        assert (await templates.resident(recipe())).intact
    await templates.aclose()
