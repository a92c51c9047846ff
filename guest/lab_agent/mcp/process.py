"""A server's process: one JSON text a line each way, neither side of it trusted to keep up or to make sense.

Both pipes are served by one loop, so that a server that writes without reading cannot hold up one that reads.
"""

from __future__ import annotations

import os
import select
import time
from _signal import SIGINT, SIGKILL, SIGPIPE, SIGTERM

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LINE = 8 << 20
"""Longest message of a server, in bytes."""
MAX_QUEUED = 32 << 20
"""Most bytes that wait for a server to read them."""
_CHUNK = 65536
_TICK_MS = 50


class ServerGone(Exception):
    """The server has ended, or was ended because it broke the protocol; the message says which."""


class ServerProcess:
    """A started server. Its standard error is the agent's own.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(self, argv: Sequence[str], env: dict[str, str]) -> None:
        inner_in, self._stdin = os.pipe()
        self._stdout, inner_out = os.pipe()
        try:
            actions = [(os.POSIX_SPAWN_DUP2, inner_in, 0), (os.POSIX_SPAWN_DUP2, inner_out, 1)]
            # A session of its own: one signal to the group reaches every child.
            self._pid = os.posix_spawnp(
                argv[0], argv, env, file_actions=actions, setsid=True, setsigdef=[SIGTERM, SIGINT, SIGPIPE]
            )
        except BaseException:
            os.close(self._stdin)
            os.close(self._stdout)
            raise
        finally:
            os.close(inner_in)
            os.close(inner_out)
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        self._status: int | None = None
        self._gone: str | None = None
        self._out = bytearray()
        self._in = bytearray()
        self._searched = 0

    def send(self, line: bytes) -> None:
        """Queue a line; it goes out as the server takes it, while `receive` waits."""
        if self._gone:
            raise ServerGone(self._gone)
        self._out += line + b"\n"
        self._write()
        if len(self._out) > MAX_QUEUED:
            self.end(f"it did not read {MAX_QUEUED >> 20} MiB that it was sent and was stopped")

    def receive(self, deadline: float) -> bytes | None:
        """The next line, or None when there is none at `deadline` (of time.monotonic).

        Raises:
            ServerGone: there will be none.
        """
        while True:
            if (line := self._line()) is not None:
                return line
            if self._gone:
                raise ServerGone(self._gone)
            left = deadline - time.monotonic()
            poll = select.poll()
            poll.register(self._stdout, select.POLLIN)
            if self._out:
                poll.register(self._stdin, select.POLLOUT)
            ready = dict(poll.poll(max(0, min(left * 1000, 60_000))))
            if self._stdin in ready:
                self._write()
            if self._stdout in ready:
                self._read()
            elif left <= 0:
                return None

    def end(self, why: str) -> None:
        """Kill the server and all its children at once."""
        self._gone = self._gone or why
        self._kill(SIGKILL)
        if self._status is None:
            _, self._status = os.waitpid(self._pid, 0)
        self._close()

    def hang_up(self) -> None:
        """Close its standard input, which tells a server to end (Lifecycle, "Shutdown")."""
        self._gone = self._gone or "it was told to end"
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def ended(self) -> bool:
        """Whether its process has ended by itself."""
        if self._status is None:
            done, status = os.waitpid(self._pid, os.WNOHANG)
            if done:
                self._status = status
        return self._status is not None

    def terminate(self) -> None:
        """Ask it, and its children, by SIGTERM."""
        self._kill(SIGTERM)

    def _kill(self, number: int) -> None:
        try:
            os.killpg(self._pid, number)
        except OSError:
            return  # nobody is left in the group

    def _close(self) -> None:
        for fd in (self._stdin, self._stdout):
            if fd >= 0:
                os.close(fd)
        self._stdin = self._stdout = -1

    def _write(self) -> None:
        try:
            n = os.write(self._stdin, self._out[: _CHUNK * 16])
        except BlockingIOError:
            return
        except OSError:
            # It reads no more; what it still says is read, and its end is noticed there.
            self._out.clear()
            return
        del self._out[:n]

    def _read(self) -> None:
        try:
            data = os.read(self._stdout, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._gone = f"it ended {self._how()}"
            self.end(self._gone)
            return
        self._in += data

    def _line(self) -> bytes | None:
        at = self._in.find(b"\n", self._searched)
        if at < 0:
            self._searched = len(self._in)
            if self._searched > MAX_LINE:
                self._in.clear()
                self.end(f"it wrote a message of more than {MAX_LINE >> 20} MiB and was stopped")
            return None
        line = bytes(self._in[:at])
        del self._in[: at + 1]
        self._searched = 0
        return line

    def _how(self) -> str:
        # A moment for the exit that follows the closed pipe.
        until = time.monotonic() + 0.5
        while not self.ended() and time.monotonic() < until:
            time.sleep(_TICK_MS / 1000)
        if self._status is None:
            return "its output"
        code = os.waitstatus_to_exitcode(self._status)
        return f"with exit code {code}" if code >= 0 else f"by signal {-code}"
