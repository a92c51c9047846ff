"""Another process that uses templates without a VM, for tests of what happens between processes.

    other_process.py making ROOT DIGEST      ask for the right to make it, make it if need be, say which
    other_process.py put ROOT SOURCES        keep a template, say so in the middle of it, and wait to be killed
    other_process.py load ROOT DIGEST SHM    load it, say so, close it on a line of input
    other_process.py loading ROOT DIGEST SHM begin to load it, say so in the middle, and wait to be killed

Sources are the files ``memory``, ``scratch`` and ``state`` in a directory.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from voidbox_lab.machines.templates import pages
from voidbox_lab.machines.templates.resident import load
from voidbox_lab.machines.templates.store import Key, TemplateStore

KEY = Key(
    image="sha256:i",
    memory_mb=1,
    vcpus=1,
    accelerator="tcg",
    emulator="/usr/bin/qemu:1:2",
    qemu="7.2.0",
    libvirt="9.0.0",
    recipe="r",
    processor="p",
)


def sources(directory: Path) -> tuple[Path, Path, Path]:
    """A saved machine's files in `directory`."""
    return directory / "memory", directory / "scratch", directory / "state"


def say(word: str) -> None:
    """One line."""
    print(word, flush=True)


def hang(*_: object) -> str:
    """Say that the middle is reached; stay there."""
    say("middle")
    time.sleep(300)
    raise AssertionError("nobody killed this process")


def making(store: TemplateStore, files: Path) -> None:
    """As the keeper does: look, ask for the right, look again, make."""
    say("asked")
    with store.making(KEY.digest, 60):
        if store.find(KEY.digest):
            say("found")
            return
        time.sleep(0.3)
        store.put(KEY, *sources(files))
        say("made")


def main(what: str, root: str, argument: str, shm: str = "") -> None:
    """Do `what`."""
    store = TemplateStore(Path(root))
    if what == "making":
        making(store, Path(argument))
    elif what == "put":
        pack = pages.pack
        # The memory is written, the scratch disk is not.
        pages.pack = lambda source, target: pack(source, target) if source.name == "memory" else hang()
        store.put(KEY, *sources(Path(argument)))
    else:
        template = store.find(argument)
        assert template is not None
        if what == "loading":
            unpack = pages.unpack
            pages.unpack = lambda source, target, digest: (
                unpack(source, target, digest) if target.name == "memory" else hang()
            )
        loaded = load(store, template, Path(shm))
        say(str(loaded.path.stat().st_ino))
        sys.stdin.readline()
        loaded.close()
        say("closed")


if __name__ == "__main__":
    main(*sys.argv[1:])
