"""Many who want images: one makes it for all, and nobody else has to wait for that. No image is made here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.box.composing import composed
from voidbox_lab.daemon.live import LiveBackend
from voidbox_lab.engine.making import noticed
from voidbox_lab.errors import Unavailable
from voidbox_lab.spec import CliSkill, Rootfs, VoidBoxSpec
from voidbox_lab.spec.events import Body, Notice

pytestmark = pytest.mark.anyio
NOTHING: Any = None


class Maker:
    """`images.compose` that says what it does and then waits for its `gate`."""

    def __init__(self) -> None:
        self.made: list[Rootfs] = []
        self.gate = threading.Event()
        self.error: Exception | None = None

    def __call__(self, _settings: Any, rootfs: Rootfs, progress: images.Report | None = None) -> Any:
        self.made.append(rootfs)
        for step in ("one", "two"):
            if progress is not None:
                progress(images.Progress("layer", step))
            while not self.gate.wait(0.01):
                anyio.from_thread.check_cancelled()
        if self.error is not None:
            raise self.error
        return SimpleNamespace(digest=f"sha256:{rootfs.packages}")

    async def busy(self, count: int = 1) -> None:
        """Wait until it was called so often."""
        with anyio.fail_after(5):
            while len(self.made) < count:
                await anyio.sleep(0.01)


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    """In the place of the real one."""
    maker = Maker()
    monkeypatch.setattr(images, "compose", maker)
    yield maker
    maker.gate.set()


def stage(n: int) -> VoidBoxSpec:
    """One that needs a layer of its own."""
    return VoidBoxSpec(name="s", command=("x",), skills=(CliSkill(name="x", packages=(f"deb:p{n}",)),))


async def test_who_waits_for_layers_keeps_no_other_thread(maker: Maker) -> None:
    """A hundred stages that wait, of one image or of many, and a file is read at once."""
    async with anyio.create_task_group() as tasks:
        backend = LiveBackend(NOTHING, NOTHING, tasks)
        for n in range(100):
            tasks.start_soon(backend.identity, stage(n % 50))
        await maker.busy(10)
        try:
            with anyio.fail_after(5):
                assert await run_sync(lambda: "read") == "read"
        finally:
            maker.gate.set()
    assert sorted(maker.made, key=str) == sorted((stage(n).rootfs(None) for n in range(50)), key=str)


async def test_an_image_on_its_way_is_shared(maker: Maker) -> None:
    """Made once, told to all who wait, of the errors as well; whoever asks later looks anew."""
    events = list[list[Body]]()
    found = list[Any]()

    async def ask() -> None:
        mine = list[Body]()
        events.append(mine)

        async def emit(body: Body) -> None:
            mine.append(body)

        with noticed(emit):
            try:
                found.append(await composed(NOTHING, Rootfs()))
            except Unavailable as error:
                found.append(error)

    for error in (None, Unavailable("No network.")):
        maker.error = error
        maker.gate.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await maker.busy(1 if error is None else 2)
            tasks.start_soon(ask)
            tasks.start_soon(ask)
            await anyio.sleep(0.05)
            maker.gate.set()
    assert len(maker.made) == 2
    assert [one.digest for one in found[:3]] == ["sha256:()"] * 3
    assert found[3:] == [error] * 3
    assert [[b.message for b in mine if isinstance(b, Notice)] for mine in events[:3]] == [
        ["one", "two"], ["two"], ["two"],
    ]  # fmt: skip


async def test_who_makes_it_and_is_cancelled_leaves_it_to_the_next(maker: Maker) -> None:
    """Those who wait neither fail nor wait for nobody."""
    found = list[Any]()
    async with anyio.create_task_group() as tasks:
        first = anyio.CancelScope()

        async def ask(scope: anyio.CancelScope) -> None:
            with scope:
                found.append(await composed(NOTHING, Rootfs()))

        tasks.start_soon(ask, first)
        await maker.busy()
        tasks.start_soon(ask, anyio.CancelScope())
        tasks.start_soon(ask, anyio.CancelScope())
        await anyio.sleep(0.05)
        first.cancel()
        await maker.busy(2)
        maker.gate.set()
    assert (len(maker.made), len(found)) == (2, 2)
