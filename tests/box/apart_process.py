"""A process that works apart, for the tests of how it ends: ``python apart_process.py``.

Starts what passes for a QEMU there, says where, and waits for its end. Settings come from the environment.
"""

from __future__ import annotations

import json
import subprocess
import sys

import anyio

from voidbox_lab.box.apart import apart
from voidbox_lab.machines.processes import DEVICE_MODULE
from voidbox_lab.settings import Settings

NAP = f"# {DEVICE_MODULE}\nimport time; print(flush=True); time.sleep(1000)"


async def main() -> None:
    """Until it is ended."""
    with apart(Settings.from_env()) as settings:
        argv = [sys.executable, "-c", NAP, str(settings.runtime / "b" / "vb-0123456789" / "vu")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as orphan:
            assert orphan.stdout is not None
            orphan.stdout.readline()
            places = [str(settings.runtime), str(settings.shm)]
            print(json.dumps({"places": places, "orphan": orphan.pid}), flush=True)
            try:
                await anyio.sleep(300)
            finally:
                orphan.kill()


anyio.run(main)
