"""Another process that makes templates of real guests, for tests of what happens between processes.

    vm_process.py hang MOMENT ROOT MEMORY_MB   make one; at MOMENT say so, and wait to be killed
    vm_process.py open ROOT MEMORY_MB          sweep, open a box, say what was swept, made, and how it started

ROOT is the templates' directory, MOMENT ``booting``, ``saving`` or ``keeping``; all else is in the environment.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from voidbox_lab.box import Boxes
from voidbox_lab.errors import VoidboxError
from voidbox_lab.machines import Hypervisor, TemplateStore, saving
from voidbox_lab.machines.machine import Machine
from voidbox_lab.machines.templates import pages
from voidbox_lab.settings import Settings


def say(**facts: object) -> None:
    """One line of JSON."""
    print(json.dumps(facts), flush=True)


def stop_at(moment: str) -> None:
    """Have the making of a template stop there for good."""

    def hang(*_: object, **__: object) -> Any:
        say(moment=moment)
        time.sleep(300)

    if moment == "booting":
        Machine.wait_said = hang  # type: ignore[method-assign]
    elif moment == "saving":
        monitor = saving._monitor
        saving._monitor = lambda domain, command, *rest: (  # type: ignore[assignment]
            hang() if command == "query-migrate" else monitor(domain, command, *rest)
        )
    else:
        pack = pages.pack
        pages.pack = lambda source, target: hang() if target.name == "scratch.pages" else pack(source, target)


async def make_until(moment: str, settings: Settings, root: Path, memory_mb: int) -> None:
    """Make a template and never finish."""
    hypervisor = await Hypervisor.open(settings)
    async with Boxes(settings, hypervisor) as boxes:
        boxes.templates.store = TemplateStore(root)
        recipe = await boxes.recipe(memory_mb=memory_mb)
        stop_at(moment)
        await boxes.templates.build(recipe)


async def open_one(settings: Settings, root: Path, memory_mb: int) -> None:
    """Open a box, as anybody would."""
    made: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: made.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("voidbox_lab.machines.templates.make").addHandler(handler)
    logging.getLogger("voidbox_lab").setLevel(logging.INFO)
    hypervisor = await Hypervisor.open(settings)
    try:
        swept = await hypervisor.sweep()
        owned = [found.name for found in await hypervisor.owned() if found.owner.home == str(settings.runtime)]
        left = [str(path) for path in (settings.shm / "b", settings.shm / "t") for path in path.glob("*")]
        async with Boxes(settings, hypervisor) as boxes:
            boxes.templates.store = TemplateStore(root)
            async with await boxes.open(memory_mb=memory_mb) as box:
                facts = box.facts
                answer = (await box.run(["uname", "-n"])).stdout.decode().strip()
        same = answer == facts.domain
        say(swept=swept, owned=owned, left=left, made=made, start=facts.start, note=facts.start_note, same=same)
    finally:
        await hypervisor.aclose()


if __name__ == "__main__":
    here = replace(Settings.from_env(), spares=0).prepare()
    try:
        if sys.argv[1] == "hang":
            anyio.run(make_until, sys.argv[2], here, Path(sys.argv[3]), int(sys.argv[4]))
        else:
            anyio.run(open_one, here, Path(sys.argv[2]), int(sys.argv[3]))
    except VoidboxError as error:
        say(error=error.to_dict())
