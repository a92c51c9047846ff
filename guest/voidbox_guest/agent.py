"""The agent put together: `Agent` serves one control connection, in a box or, for tests, on a host."""

from __future__ import annotations

import os
from _signal import SIG_IGN, SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGTERM, set_wakeup_fd, signal
from time import time_ns

from wire import protocol as p

from . import supervisor
from .bundles import Bundles
from .calls import Call, Handler, OpError
from .capture import Capture
from .files import Files
from .loop import READ, Loop
from .places import Places
from .policy import Policy
from .processes import Commands
from .proxy import Proxy, dial_vsock
from .server import Server
from .telemetry import Telemetry
from .volumes import Volumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as raw_socket
    from collections.abc import Callable
    from typing import Any


_prepared: list[Policy] = []


def prepare() -> Policy:
    """The policy that is in force until the host says another, made once: in a template before it is saved.

    Raises OSError or OpError."""
    if not _prepared:
        supervisor.prepare()
        _prepared.append(_policy(True, True))
    return _prepared[0]


def _policy(privileged: bool, enforced: bool) -> Policy:
    places = Places(privileged=privileged)
    places.prepare()
    policy = Policy(places, enforced=enforced)
    policy.set_default()
    return policy


class Agent:
    """All operations on one connection.

    `privileged` False is for tests on a host as an ordinary process, and nothing else: no user switch, no
    cgroups, no Landlock and no seccomp unless `enforced` says so, no identity, no power-off.
    """

    def __init__(
        self,
        sock: raw_socket,
        *,
        privileged: bool = True,
        enforced: bool = True,
        dial: Callable[[int], raw_socket] = dial_vsock,
        boot: dict[str, Any] | None = None,
    ) -> None:
        os.set_inheritable(sock.fileno(), False)
        self._privileged = privileged
        self._boot = boot or {}
        self.ended = ""
        """Why the connection ended."""
        self._loop = Loop()
        policy = prepare() if privileged and enforced else _policy(privileged, enforced)
        self._commands = Commands(self._loop, policy, cgroups=privileged, switch_user=privileged)
        files = Files(switch_user=privileged)
        volumes = Volumes(privileged=privileged)
        bundles = Bundles(self._loop, policy.places)
        proxy = Proxy(self._loop, dial)
        self._server = Server(
            self._loop,
            sock,
            {
                p.OP_PING: self._ping,
                p.OP_EXEC: self._commands.operation,
                p.OP_PUT: files.put,
                p.OP_GET: files.get,
                p.OP_STAT: files.stat,
                p.OP_MKDIR: files.mkdir,
                p.OP_LIST: files.list,
                p.OP_REMOVE: files.remove,
                p.OP_PACK: bundles.pack,
                p.OP_UNPACK: bundles.unpack,
                p.OP_TELEMETRY: Telemetry(self._loop, self._commands.look, proxy.carried).operation,
                p.OP_POLICY: policy.operation,
                p.OP_IDENTITY: self._identity,
                p.OP_PROXY: proxy.operation,
                p.OP_CAPTURE: Capture(self._loop, proxy, privileged=privileged).operation,
                p.OP_MOUNT: volumes.mount,
                p.OP_UNMOUNT: volumes.unmount,
                p.OP_SHUTDOWN: self._shutdown,
            },
            self._closed,
        )

    def serve(self, decoder: Any = None, frames: list[Any] | None = None) -> str:
        """Serve until the connection ends or a shutdown is asked for; returns why. All commands are dead then,
        or about to be."""
        self._watch_children()
        self._server.start(decoder, frames)
        self._loop.run()
        return self.ended

    def _watch_children(self) -> None:
        for number in (SIGHUP, SIGINT, SIGTERM, SIGPIPE):
            signal(number, SIG_IGN)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

        def awake(_: int) -> None:
            try:
                while os.read(reader, 4096):
                    pass
            except BlockingIOError:
                pass
            self._commands.reap()

        self._loop.watch(reader, READ, awake)
        set_wakeup_fd(writer, warn_on_full_buffer=False)
        # A Python-level handler must exist, or nothing is written to the descriptor.
        signal(SIGCHLD, lambda *_: None)

    def _closed(self, reason: str) -> None:
        self.ended = self.ended or reason
        self._loop.stop()

    # operations

    def _ping(self, call: Call) -> dict[str, Any]:
        with open("/proc/uptime", "rb") as file:
            uptime = float(file.read().split()[0])
        return {"time_ns": time_ns(), "uptime_s": uptime, "boot": self._boot}

    def _identity(self, call: Call) -> dict[str, Any]:
        if not self._privileged:
            raise OpError(p.UNSUPPORTED, "an unprivileged agent has no identity to change")
        from .boot import identify

        call.integer("time_ns", 0, 0, 1 << 63)
        hostname, entropy = call.text("hostname", ""), call.text("entropy", "")
        if len(entropy) > 1024:
            raise OpError(p.BAD_REQUEST, "entropy must be at most 512 bytes, in hexadecimal")
        identify({"hostname": hostname, "entropy": entropy, "time_ns": call.request.get("time_ns")})
        return {}

    def _shutdown(self, call: Call) -> None:
        self.ended = "shutdown"
        call.handler = Handler()
        call.reply({})
        # The reply leaves at the end of this round, and the loop with it.
        self._loop.stop()
