"""The daemon's life: one per user by a file lock, two UNIX sockets, TCP if asked for, and its end.

It ends by signal, request or idleness.

The lock is flock(2) on ``<runtime>/daemon.lock``, held for life; the kernel lets go of it on kill -9. So
whoever has the lock may remove a socket it finds: its owner is dead.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import logging.handlers
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import anyio
from anyio import to_thread

from voidbox_lab import __version__
from voidbox_lab.daemon import app, ratelimit, tcp, token
from voidbox_lab.daemon.backend import MakeBackend
from voidbox_lab.daemon.core import SHUTDOWN_S, Daemon
from voidbox_lab.engine import Capacity
from voidbox_lab.errors import UserError
from voidbox_lab.gateway.serve import serving_unix
from voidbox_lab.settings import AccelChoice, Address, Settings, VsockChoice
from voidbox_lab.spec.api import MAX_SHELL_MESSAGE

IDLE_S = 15 * 60.0
LOCK_S = 45.0
"""How long a starting daemon waits for one that is ending."""
MAX_DESCRIPTORS = 1 << 16
LOG_BYTES, LOG_FILES = 1 << 20, 3

log = logging.getLogger(__name__)


def main(make_backend: MakeBackend, settings: Settings | None = None) -> int:
    """Run the daemon until its end; the exit code. 0 also if another one runs already."""
    settings = (settings or read_settings(sys.argv[1:])).prepare()
    idle_s = idle_from_env(os.environ, tcp=settings.tcp is not None)
    _log_to(settings.data / "logs" / "daemon.log")
    _raise_descriptor_limit()
    with _alone(settings) as alone:
        if alone:
            log.info("daemon %s of pid %d starts", __version__, os.getpid())
            anyio.run(serve, settings, make_backend, idle_s)
            log.info("daemon of pid %d ended", os.getpid())
    return 0


def _raise_descriptor_limit() -> None:
    """As many descriptors as allowed: a box may hold 64 connections, and a login's soft limit is often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def read_settings(arguments: list[str]) -> Settings:
    """The settings a client gave on the command line; what it did not give is as in the environment."""
    given = Settings.from_env()
    parser = argparse.ArgumentParser(prog="python -m voidbox_lab.daemon", description=__doc__, allow_abbrev=False)
    for name in ("cache", "data", "runtime"):
        parser.add_argument(f"--{name}", type=Path, default=getattr(given, name))
    parser.add_argument("--accel", choices=get_args(AccelChoice), default=given.accel)
    parser.add_argument("--vsock", choices=get_args(VsockChoice), default=given.vsock)
    parser.add_argument("--libvirt-uri", default=given.libvirt_uri)
    parser.add_argument("--tcp", type=lambda text: Address.parse(text, "--tcp"), default=given.tcp)
    return replace(given, **vars(parser.parse_args(arguments)))


def idle_from_env(env: Any, *, tcp: bool = False) -> float:
    """`VOIDBOX_IDLE_S` in seconds. By default a daemon on TCP stays: nobody can start it from afar.

    Raises:
        UserError: not a positive number.
    """
    text = env.get("VOIDBOX_IDLE_S", "")
    try:
        if not text:
            return math.inf if tcp else IDLE_S
        idle_s = float(text)
    except ValueError:
        idle_s = -1
    if not 0 < idle_s < 1e9:
        raise UserError(f"VOIDBOX_IDLE_S={text!r} is not a positive number of seconds; mend or unset it.")
    return idle_s


async def serve(
    settings: Settings,
    make_backend: MakeBackend,
    idle_s: float = IDLE_S,
    capacity: Capacity | None = None,
) -> None:
    """Serve until stopped. The caller holds the lock."""
    async with AsyncExitStack() as stack:
        # First, and outside of all tasks: what is wrong with these is said as it is, and nothing has begun.
        listener = settings.tcp and stack.enter_context(await to_thread.run_sync(tcp.bound, settings.tcp))
        secret = token.token(settings) if listener else ""
        daemon = await stack.enter_async_context(Daemon.open(settings, make_backend, capacity=capacity))
        await stack.enter_async_context(
            serving_unix(daemon.backend.gateway_app, settings.runtime / "gateway.sock")
        )
        api = app.create(daemon)
        if settings.tcp and listener:
            served = tcp.serving_tcp(api, listener, settings.tcp.host, secret)
            daemon.tcp = await stack.enter_async_context(served)
        # Last: who finds the socket finds everything else.
        own = ratelimit.Limited(api, ratelimit.UNIX)
        await stack.enter_async_context(serving_unix(own, settings.socket, websocket_bytes=MAX_SHELL_MESSAGE))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_on_signals, daemon)
            tasks.start_soon(daemon.sweep_quietly)
            tasks.start_soon(daemon.leave_when_idle, idle_s)
            await daemon.stopping.wait()
            _die_in_the_end()
            # First the name: a client that comes now starts a new daemon, which waits for our lock.
            settings.socket.unlink(missing_ok=True)
            await daemon.wind_down()
            tasks.cancel_scope.cancel()


async def _stop_on_signals(daemon: Daemon) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            log.info("%s, ending", signal.Signals(number).name)
            daemon.stop()


def _die_in_the_end() -> None:
    """Whatever hangs below (a library call that never returns): the end is bounded, the next start sweeps."""
    bound = SHUTDOWN_S + 30

    def die() -> None:
        log.error("not ended after %g s, exiting all the same", bound)
        logging.shutdown()
        os._exit(70)

    timer = threading.Timer(bound, die)
    timer.daemon = True
    timer.start()


@contextmanager
def _alone(settings: Settings) -> Iterator[bool]:
    """Hold the lock; False if a daemon that answers holds it."""
    handle = os.open(settings.runtime / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if _answers(settings.socket):
                    yield False
                    return
                if time.monotonic() > deadline:
                    raise UserError(
                        f"Another daemon holds {settings.runtime / 'daemon.lock'} and has not answered for "
                        f"{LOCK_S:g} s; end that process."
                    ) from None
                time.sleep(0.05)
        yield True
    finally:
        os.close(handle)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.settimeout(1)
        probe.connect(str(path))
        return True
    return False


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # These say at INFO what each request was; paths and model names are nobody's business in a log.
    for noisy in ("httpx", "httpcore", "uvicorn", "sse_starlette"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
