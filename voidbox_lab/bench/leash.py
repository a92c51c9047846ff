"""Processes that a measurement starts by hand, none of which outlives it. Nothing here measures."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TypeVar

import anyio
from anyio.to_thread import run_sync

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
"""prctl(2), ``linux/prctl.h``."""
_LIBC = ctypes.CDLL(None)
_END_S = 10.0
"""Bound on waiting for a thread whose processes were killed."""
_running: set[subprocess.Popen[bytes]] = set()


@contextmanager
def leashed(
    argv: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The process `argv`, silent, killed at the end; and by the kernel when the thread that started it dies.

    The rest as in `subprocess.Popen`.
    """
    parent = os.getpid()

    def tie() -> None:
        # Between fork and exec: no import, no allocation that another thread's lock could hold up.
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)

    with subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        preexec_fn=tie,  # noqa: PLW1509, RUF100 - see `tie`
    ) as process:
        _running.add(process)
        try:
            yield process
        finally:
            _running.discard(process)
            process.kill()


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """`work(*args)` in a thread; when this is cancelled, its leashed processes are killed, which ends it soon."""
    done = threading.Event()

    def call() -> T:
        try:
            return work(*args)
        finally:
            done.set()

    try:
        # Not truly abandoned: below it is waited for, once nothing holds it up.
        return await run_sync(call, abandon_on_cancel=True)
    except BaseException:
        with anyio.move_on_after(_END_S, shield=True):
            while not done.is_set():
                for process in tuple(_running):
                    process.kill()
                await anyio.sleep(0.01)
        raise
