"""Another process that uses machines, for tests of what happens between processes.

``python other_process.py start SCRIPT``: start a box with SCRIPT as its init, print JSON, wait to be killed.
``python other_process.py sweep``: sweep, print the names and what is still owned.

Settings come from the environment, as everywhere.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parent))
import guests

from voidbox_lab import images
from voidbox_lab.errors import VoidboxError
from voidbox_lab.machines import Hypervisor
from voidbox_lab.settings import Settings


def say(**facts: object) -> None:
    """One line of JSON."""
    print(json.dumps(facts), flush=True)


async def start(settings: Settings, script: str) -> None:
    """Start a box and hold it."""
    hypervisor = await Hypervisor.open(settings)
    spec = guests.make_spec(settings, images.resolve(settings), script)
    machine = await hypervisor.start(spec)
    say(box=spec.name, pid=machine.pid, uri=hypervisor.uri)
    await anyio.sleep(300)


async def sweep(settings: Settings) -> None:
    """Sweep once."""
    hypervisor = await Hypervisor.open(settings)
    try:
        swept = await hypervisor.sweep()
        # A session daemon shows all of the user's boxes, and other tests may have some.
        mine = [o.owner for o in await hypervisor.owned() if o.owner.home == str(settings.runtime)]
        say(swept=swept, owned=[asdict(owner) for owner in mine])
    finally:
        await hypervisor.aclose()


if __name__ == "__main__":
    try:
        if sys.argv[1] == "start":
            anyio.run(start, Settings.from_env().prepare(), sys.argv[2])
        else:
            anyio.run(sweep, Settings.from_env().prepare())
    except VoidboxError as error:
        say(error=error.to_dict())
