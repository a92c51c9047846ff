"""A place for boxes beside the user's daemon: libvirt's embedded driver belongs to one process per directory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from voidbox_lab.machines.apartdirs import claim_home, remove_home, sweep_homes
from voidbox_lab.settings import Settings

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
            remove_home(home)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Signals that would end this process without a word cancel what it does, as SIGINT does.

    Those that somebody handles or ignores (nohup) stay so.
    """
    if threading.current_thread() is not threading.main_thread():  # nobody else may set handlers
        yield
        return
    ours = [number for number in _ENDINGS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
