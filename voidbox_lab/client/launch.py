"""Finds the daemon, or starts it: detached, once however many clients ask at the same time.

Blocking, and quick when a daemon runs; async callers use a thread.
"""

from __future__ import annotations

import fcntl
import os
import site
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from pydantic import ValidationError

from voidbox_lab import __version__
from voidbox_lab.client.keys import is_key
from voidbox_lab.client.protocol import checked
from voidbox_lab.client.way import way
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec.api import API_VERSION, Health

MODULE = "voidbox_lab.daemon"
START_S = 60.0
"""Bound on a start. It takes about a second; a daemon that is just ending is waited for."""
POLL_S = 0.02
PROBE_S = 10.0
"""A daemon that accepts a connection and does not answer for so long hangs."""


def ensure_daemon(settings: Settings | None = None, *, timeout_s: float = START_S) -> Health:
    """The health of a running daemon of this release, started if need be.

    The one that `VOIDBOX_DAEMON` names is neither started nor replaced.

    Raises:
        UserError: a daemon of another release runs and is busy, or is somebody else's to replace.
        ProviderError: the daemon did not start; the message holds what it said.
    """
    settings = settings or Settings.from_env()
    if settings.daemon is not None:
        return _elsewhere(settings)
    settings.prepare()
    deadline = time.monotonic() + timeout_s
    health = probe(settings)
    if health is not None and _ours(health):
        return health
    with _one_starter(settings, deadline):
        health = probe(settings)
        if health is not None and not _ours(health):
            _retire(settings, health, deadline)
            health = None
        return health or _start(settings, deadline)


def probe(settings: Settings) -> Health | None:
    """The health of whatever daemon listens; None if none does.

    Raises:
        ProviderError: something listens and does not answer as a daemon.
    """
    if settings.daemon is None and not settings.socket.exists():
        return None
    there = way(settings)
    try:
        with there.client() as http:
            response = checked(http.get("/v1/health", timeout=PROBE_S))
        said = response.json()
    except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
        return None  # a socket whose daemon is dead, or is just ending
    except httpx.TimeoutException as e:
        raise ProviderError(
            f"The daemon at {there.where} does not answer within {PROBE_S:g} s; end its process.",
            cause="daemon-hangs",
        ) from e
    except ValueError as e:
        raise _no_daemon(there.where) from e
    if not isinstance(said, dict):
        raise _no_daemon(there.where)
    # Not strict: another release's daemon may say more or less than ours.
    known = {k: v for k, v in said.items() if k in Health.model_fields}
    try:
        return Health.model_validate({"api": 0, "uptime_s": 0, "runs": 0, "boxes": 0, **known})
    except ValidationError as e:
        raise _no_daemon(there.where) from e


def _no_daemon(where: str) -> ProviderError:
    return ProviderError(f"What answers at {where} is no daemon of voidbox-lab; look what listens there.")


def _elsewhere(settings: Settings) -> Health:
    health = probe(settings)
    if health is None:
        raise ProviderError(
            f"No daemon answers at {settings.daemon}, which VOIDBOX_DAEMON names; start it there with "
            "`voidbox daemon start --tcp`, look at the tunnel, or unset VOIDBOX_DAEMON.",
            cause="daemon-lost",
        )
    if health.api != API_VERSION:
        raise UserError(
            f"The daemon at {settings.daemon} is voidbox-lab {health.version} with API {health.api}, and this is "
            f"{__version__} with API {API_VERSION}; use the same release on both sides.",
            cause="version",
        )
    return health


def _ours(health: Health) -> bool:
    return (health.version, health.api) == (__version__, API_VERSION)


def _retire(settings: Settings, health: Health, deadline: float) -> None:
    """Ask an idle daemon of another release to leave."""
    busy = UserError(
        f"A daemon of voidbox-lab {health.version} is busy ({health.runs} runs, {health.boxes} boxes), and this "
        f"is {__version__}; wait for its runs to end, or cancel them, and try again.",
        cause="busy",
    )
    if health.runs or health.boxes:
        raise busy
    try:
        with way(settings).client() as http:
            response = http.post("/v1/shutdown", params={"if_idle": "true"}, timeout=PROBE_S)
    except httpx.TransportError:
        return  # it left by itself
    if not response.is_success:
        raise busy
    while settings.socket.exists() and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _start(settings: Settings, deadline: float) -> Health:
    said = settings.data / "logs" / "daemon.out"
    said.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, *_arguments(settings)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd="/",
            env=_environment(settings),
            start_new_session=True,  # a notebook's Ctrl-C and a closed terminal are not for the daemon
        )
    # Reaps it when it ends, so that a long-lived notebook holds no zombie.
    threading.Thread(target=process.wait, name="voidbox-daemon-reaper", daemon=True).start()
    while time.monotonic() < deadline:
        if health := probe(settings):
            return health
        # 0: it found another one running, which will answer.
        if process.returncode:
            raise ProviderError(
                f"The daemon did not start (exit code {process.returncode}): {_tail(said)}", cause="daemon-start"
            )
        time.sleep(POLL_S)
    raise ProviderError(
        f"The daemon did not answer in time; see {settings.data / 'logs'}. {_tail(said)}".strip(),
        cause="daemon-start",
    )


def _arguments(settings: Settings) -> list[str]:
    """The settings, so that the daemon's are these and not what its environment would give."""
    named: dict[str, str | Path] = {"cache": settings.cache, "data": settings.data, "runtime": settings.runtime}
    named |= {"accel": settings.accel, "vsock": settings.vsock}
    if settings.libvirt_uri:
        named["libvirt-uri"] = settings.libvirt_uri
    if settings.tcp:
        named["tcp"] = str(settings.tcp)
    return [f"--{name}={value}" for name, value in named.items()]


def _environment(settings: Settings) -> dict[str, str]:
    """Ours without secrets (/proc/PID/environ shows them to every process of this user), able to import us."""
    env = {name: value for name, value in os.environ.items() if not is_key(name) and name != "VOIDBOX_TOKEN"}
    # Not an argument: a server's URL may hold a password, and every user sees arguments.
    env["VOIDBOX_STORE"] = settings.store
    if settings.otlp:
        env["VOIDBOX_OTLP_ENDPOINT"] = settings.otlp
    home = str(Path(__file__).parents[2])
    if home not in {*site.getsitepackages(), site.getusersitepackages()}:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [home, env.get("PYTHONPATH")]))
    return env


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else f"it said nothing; see {path.parent}"


@contextmanager
def _one_starter(settings: Settings, deadline: float) -> Iterator[None]:
    """A lock among clients that start, so that each sees what the one before it did."""
    handle = os.open(settings.runtime / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise ProviderError(
                        "Another client has been starting the daemon for too long.", cause="daemon-start"
                    ) from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(handle)
