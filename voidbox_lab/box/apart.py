"""A place for boxes beside the user's daemon: libvirt's embedded driver belongs to one process per directory."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from voidbox_lab.machines.apartdirs import claim_home, remove_home, sweep_homes
from voidbox_lab.settings import Settings

LATE_S = 1.0
"""Seconds that libvirt is given to come back to a removed directory; 0.2 on a quiet host."""
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def apart(user: Settings) -> Iterator[Settings]:
    """`user`'s settings with runtime and memory directories of their own; images and templates stay the user's.

    Both are removed at the end, and SIGTERM and SIGHUP are such an end: until then they act like Ctrl-C. What a
    killed process leaves, its boxes included, the next call removes, or the next `Hypervisor.sweep`. Blocking,
    quick.

    Raises:
        UserError: a directory cannot be written.
    """
    user.prepare()
    sweep_homes(user)
    with _ended_as_by_ctrl_c():
        home = claim_home(user)
        try:
            yield replace(home, boot_log=None).prepare()
        finally:
            _remove(home)


def _remove(home: Settings) -> None:
    """Remove `home`, and again what libvirt puts there afterwards.

    The embedded driver stays loaded, and a thread of it saves the state of a domain that has ended already, after
    its connection is closed: it makes ``lv/run/qemu`` anew.
    """
    end = time.monotonic() + (LATE_S if (home.runtime / "lv").exists() else 0)
    remove_home(home)
    while time.monotonic() < end:
        time.sleep(0.05)
        if home.runtime.exists():
            remove_home(home)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Signals that would end this process without a word cancel the running task and end in KeyboardInterrupt.

    Not by way of SIGINT, which a shell has its background jobs ignore. Signals that somebody handles or ignores
    (nohup) stay so; a second one does not wait for what the first has begun.
    """
    if threading.current_thread() is not threading.main_thread():  # nobody else may set handlers
        yield
        return
    task: asyncio.Task[object] | None = None
    with suppress(RuntimeError):  # no loop runs
        task = asyncio.current_task()
    asked = False

    def end(_number: int, _frame: object) -> None:
        nonlocal asked
        if asked or task is None:
            raise KeyboardInterrupt
        asked = True
        task.get_loop().call_soon_threadsafe(task.cancel)

    ours = [number for number in _ENDINGS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    except asyncio.CancelledError:
        if asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
