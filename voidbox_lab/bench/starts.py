"""How long a box takes to be there: cold, as a clone, from the pool, and several at once."""

from __future__ import annotations

import secrets
import time

import anyio
from anyio.to_thread import run_sync

from voidbox_lab.bench import bare
from voidbox_lab.bench.leash import in_thread
from voidbox_lab.bench.samples import Figure, Series
from voidbox_lab.bench.stand import Stand
from voidbox_lab.box import Box, Boxes
from voidbox_lab.box.boot_data import TEMPLATE_BOOT_DATA
from voidbox_lab.errors import CommandFailed, LimitExceeded, ProviderError
from voidbox_lab.machines import MemoryFile, Owner, claim
from voidbox_lab.machines.sparse import copy_sparse
from voidbox_lab.spec.run import BoxStart

TRUE = ["/bin/true"]
SPARE_S = 120.0
"""Bound on waiting for a spare."""


async def _timed(boxes: Boxes, memory_mb: int) -> tuple[float, float, Box]:
    """Seconds to the box (first byte and policy) and to the first command's result (first useful work)."""
    began = time.monotonic()
    box = await boxes.open(memory_mb=memory_mb)
    up = time.monotonic() - began
    done = await box.run(TRUE)
    if done.exit_code:
        raise CommandFailed(f"{TRUE[0]} in box {box.id} exited {done.exit_code}.", exit_code=done.exit_code)
    return up, time.monotonic() - began, box


def check_start(box: Box, wanted: BoxStart) -> None:
    """A box that started otherwise than is measured would make a false figure.

    Raises:
        ProviderError: it did; the message says why, if anybody knows.
    """
    if box.facts.start != wanted:
        why = box.facts.start_note or "no reason was given"
        raise ProviderError(
            f"Box {box.id} started as {box.facts.start} where {wanted} is measured ({why}).", cause="start"
        )


async def cold(stand: Stand) -> list[Figure]:
    """Kernel to the first command, against bare QEMU to its ready line. Alternating, so neighbours hit both."""
    floor, up, work = [], [], []
    async with stand.boxes(warm="off") as boxes:
        recipe = await boxes.recipe(memory_mb=stand.memory_mb)
        for n in range(stand.samples(5) + 1):
            bare_s = await in_thread(bare.cold, recipe, stand.hypervisor.emulator, stand.work)
            up_s, work_s, box = await _timed(boxes, stand.memory_mb)
            await box.close()
            if n:  # the first fills the page cache
                floor.append(bare_s)
                up.append(up_s)
                work.append(work_s)
    ready = Series("bare QEMU to its ready line", "s", tuple(floor))
    return [
        Figure("cold", Series("cold, first byte", "s", tuple(up)), ready),
        Figure("cold", Series("cold, first useful work", "s", tuple(work)), ready, wanted_ratio=1.25),
    ]


async def warm(stand: Stand) -> list[Figure]:
    """A clone without the pool, against a bare clone of the same guest plus libvirt's own create."""
    clones, creates, up, work = [], [], [], []
    async with stand.boxes(spares=0) as boxes:
        recipe = await boxes.recipe(memory_mb=stand.memory_mb)
        template = await in_thread(bare.make_template, recipe, stand.hypervisor.emulator, stand.work)
        for n in range(stand.samples(15) + 1):
            bare_s = await in_thread(bare.clone, template)
            create_s = await _create(stand, boxes)
            up_s, work_s, box = await _timed(boxes, stand.memory_mb)
            check_start(box, "clone")
            await box.close()
            if n:
                clones.append(bare_s)
                creates.append(create_s)
                up.append(up_s)
                work.append(work_s)
    both = tuple(a + b for a, b in zip(clones, creates, strict=True))
    floor = Series("bare clone + libvirt's create", "s", both)
    return [
        Figure("warm", Series("bare clone, first byte", "s", tuple(clones))),
        Figure("warm", Series("libvirt's create alone", "s", tuple(creates))),
        Figure("warm", Series("clone, first byte", "s", tuple(up)), floor, wanted_ratio=1.25),
        Figure("warm", Series("clone, first useful work", "s", tuple(work)), floor),
    ]


async def _create(stand: Stand, boxes: Boxes) -> float:
    """Seconds libvirt takes to create the domain of a clone, empty and paused."""
    recipe = await boxes.recipe(memory_mb=stand.memory_mb)
    owner = Owner.current(stand.settings, f"vb-{secrets.token_hex(5)}")
    dirs = await run_sync(claim, stand.settings, owner)
    try:
        await run_sync(copy_sparse, recipe.image.scratch, dirs.cache / "scratch.img")
        (dirs.runtime / "boot.json").write_bytes(TEMPLATE_BOOT_DATA)
        with (dirs.memory / "ram").open("wb") as file:
            file.truncate(recipe.memory_mb << 20)
        spec = recipe.spec(dirs, owner, memory=MemoryFile(dirs.memory / "ram", shared=True), incoming=True)
        began = time.monotonic()
        machine = await boxes.hypervisor.start(spec)
        seconds = time.monotonic() - began
        await machine.destroy()
        return seconds
    finally:
        await run_sync(dirs.remove)


async def claimed(stand: Stand) -> list[Figure]:
    """A spare claimed, against a command in a box that runs already."""
    up, work, again = [], [], []
    async with stand.boxes(spares=1) as boxes:
        first = await boxes.open(memory_mb=stand.memory_mb)
        await first.close()
        for _ in range(stand.samples(15)):
            await until_spare(boxes)
            up_s, work_s, box = await _timed(boxes, stand.memory_mb)
            check_start(box, "spare")
            began = time.monotonic()
            await box.run(TRUE)
            again.append(time.monotonic() - began)
            await box.close()
            up.append(up_s)
            work.append(work_s)
    floor = Series("the next command in that box", "s", tuple(again))
    return [
        Figure("claim", Series("claim, first byte", "s", tuple(up))),
        Figure("claim", Series("claim, first useful work", "s", tuple(work)), floor, wanted=0.080),
    ]


async def until_spare(boxes: Boxes, count: int = 1) -> None:
    """Wait until the pool has `count` boxes ready.

    Raises:
        LimitExceeded: it had not within `SPARE_S` (limit ``time``).
    """
    with anyio.move_on_after(SPARE_S):
        while len(boxes.pool) < count:  # noqa: ASYNC110 - nobody is to be told in the product
            await anyio.sleep(0.05)
    if len(boxes.pool) < count:
        raise LimitExceeded(
            f"The pool had {len(boxes.pool)} of {count} spare boxes ready after {SPARE_S:g} s; "
            "free memory, also in /dev/shm, or ask for a smaller box with --memory.",
            limit="time",
            value=SPARE_S,
            unit="s",
        )
    await anyio.sleep(0.5)  # what making it left to do is not the claimer's


async def burst(stand: Stand) -> list[Figure]:
    """1, 4 and 16 boxes asked for at once, from an empty pool, until each has answered a command."""
    figures = []
    one: Series | None = None
    async with stand.boxes(spares=0) as boxes:
        await (await boxes.open(memory_mb=stand.memory_mb)).close()
        for count in (1, 4, 16):
            seconds = []
            for _ in range(stand.samples(3)):
                opened: list[Box] = []

                async def up(into: list[Box]) -> None:
                    _, _, box = await _timed(boxes, stand.memory_mb)
                    into.append(box)

                began = time.monotonic()
                async with anyio.create_task_group() as tasks:
                    for _ in range(count):
                        tasks.start_soon(up, opened)
                seconds.append(time.monotonic() - began)
                async with anyio.create_task_group() as tasks:
                    for box in opened:
                        tasks.start_soon(box.close)
            series = Series(f"{count} at once, all answering", "s", tuple(seconds))
            floor = Series(f"{count} x one", "s", tuple(count * s for s in one.samples)) if one else None
            one = one or series
            figures.append(Figure("burst", series, floor, wanted=14.0 if count == 16 else None))
    return figures
