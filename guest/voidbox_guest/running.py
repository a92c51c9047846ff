"""One command in the guest, from fork to reply: its pipes or terminal, its time, its end and what it leaves.

Which commands may begin, and the reaping of children, is `processes`' business.
"""

from __future__ import annotations

import os
from _collections import deque
from _signal import SIGHUP, SIGKILL, SIGTERM
from _socket import AF_UNIX, MSG_CMSG_CLOEXEC, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair
from errno import EIO
from select import POLLHUP, poll
from time import monotonic

from wire.protocol import (
    BAD_REQUEST,
    CANCELLED,
    INTERNAL,
    KILL_GRACE_S,
    LINGER_S,
    STDERR,
    STDIN,
    STDOUT,
)

from . import oversight, terminal
from .calls import Call, Handler, OpError
from .loop import BROKEN, READ, WRITE
from .spawn import LISTENER, MAX_REPORT, Command, spawn
from .streams import open_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as raw_socket
    from typing import Any

    from .loop import Loop, Timer
    from .processes import Commands

GIVE_UP_S = 5.0
"""Seconds after SIGKILL until an output that is still held open (a process in D state) is abandoned."""


class Running(Handler):
    """One command from fork to reply."""

    __slots__ = (
        "_begun",
        "_call",
        "_command",
        "_commands",
        "_dropped",
        "_end_time",
        "_giving_up",
        "_killer",
        "_loop",
        "_oom",
        "_outputs",
        "_over",
        "_oversight",
        "_pid",
        "_report",
        "_start_time",
        "_status",
        "_stdin",
        "_stdin_ended",
        "_stdin_queue",
        "_timed_out",
        "_timeout",
        "_tree",
        "_with_stdin",
    )

    def __init__(
        self, loop: Loop, commands: Commands, call: Call, command: Command, with_stdin: bool, timeout: float
    ) -> None:
        self._loop, self._commands, self._call, self._command = loop, commands, call, command
        self._with_stdin, self._timeout = with_stdin, timeout
        self._begun = False
        self._pid = 0
        self._report: raw_socket | None = None
        self._stdin = -1
        self._stdin_queue: deque[memoryview] = deque()
        self._stdin_ended = False
        self._outputs: dict[int, int] = {}
        self._status: int | None = None
        self._killer: Timer | None = None
        self._giving_up: Timer | None = None
        self._dropped = False
        self._over = False
        self._timed_out = False
        self._oom = False
        self._start_time = self._end_time = 0.0

    def begin(self) -> bool:
        """Start, unless it was cancelled while it queued; whether it is now between fork and exec."""
        if not self._call.closed:
            self._call.guarded(self._start)
        return self._report is not None

    def _start(self) -> None:
        """Fork. Raises OSError with nothing left behind."""
        self._tree = self._commands.make_tree()
        opened: list[int] = []
        try:
            oversight.cap(self._tree, self._command)
            streams, self._stdin, outputs = open_streams(self._command, self._with_stdin, opened)
            self._report, child_report = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
            self._start_time = monotonic()
            self._pid = spawn(self._command, *streams, child_report, self._tree.enter_fd)
        except OSError:
            for fd in opened:
                os.close(fd)
            self._stdin, self._report = -1, None
            self._commands.bury(self._tree)
            raise
        self._begun = True
        self._tree.entered(self._pid)
        self._oversight = oversight.Oversight(self._loop, self._call, self._command, self._tree)
        self._commands.started(self._pid, self)
        child_report.close()
        for fd in set(streams):
            os.close(fd)
        self._outputs = outputs
        for fd in outputs.values():
            os.set_blocking(fd, False)
        self._report.setblocking(False)
        self._loop.watch(self._report.fileno(), READ, lambda _: self._call.guarded(self._reported))
        for channel, fd in outputs.items():
            self._listen(channel, fd)
        if STDERR not in outputs:
            self._call.end(STDERR)
        if self._stdin >= 0:
            os.set_blocking(self._stdin, False)
            self._loop.watch(self._stdin, 0, self._stdin_ready)
            self._feed()
        if self._timeout:
            self._killer = self._loop.after(self._timeout, self._expired)

    # from the child

    def _reported(self) -> None:
        assert self._report is not None
        report = LISTENER
        try:
            while report == LISTENER:
                report, passed, _, _ = self._report.recvmsg(MAX_REPORT, 64, MSG_CMSG_CLOEXEC)
                for _, _, descriptor in passed:
                    self._oversight.listen(int.from_bytes(descriptor[:4], "little"))
        except BlockingIOError:
            return
        except ConnectionResetError:  # it is gone without a word
            report = b""
        self._close_report()
        if not report:
            self._call.event({"started": self._pid})
            return
        stage, number, *_rest = report.decode("ascii", "replace").split(":")
        self._dropped = True
        self._call.fail(self._commands.explain(stage, int(number), self._command))

    def look(self) -> None:
        """See what the policy denied until now; it is told in its time."""
        self._oversight.look()

    def _close_report(self) -> None:
        if self._report is not None:
            self._loop.forget(self._report.fileno())
            self._report.close()
            self._report = None
            self._commands.has_begun()

    def _listen(self, channel: int, fd: int) -> None:
        self._loop.watch(fd, READ, lambda _: self._call.guarded(self._pump, channel))

    def _pump(self, channel: int) -> None:
        """Move output to the host while there is output, credit and room."""
        fd = self._outputs.get(channel)
        while fd is not None:
            if self._call.closed:  # it failed: nobody is left to send to
                self._close_output(channel)
                self._settle()
                return
            room = self._call.room(channel)
            if not room:
                self._loop.forget(fd)
                return
            try:
                data = os.read(fd, room)
            except BlockingIOError:
                self._listen(channel, fd)
                return
            except OSError as error:
                if error.errno != EIO:
                    raise
                # Nobody has the terminal open. While the leader lives it is not closed: that would be a hang-up,
                # and many a program closes its streams before it exits with a code that SIGHUP would replace.
                if self._status is None:
                    self._loop.forget(fd)
                    return
                data = b""
            if not data:
                self._close_output(channel)
                self._settle()
                return
            self._call.send(channel, data)

    def _close_output(self, channel: int) -> None:
        fd = self._outputs.pop(channel)
        self._loop.forget(fd)
        os.close(fd)
        self._call.end(channel)

    def exited(self, status: int) -> None:
        """The leader was reaped."""
        self._end_time = monotonic()
        self._status = status
        if self._report is not None:
            self._call.guarded(self._reported)
        self._oversight.flush()
        if status:
            try:
                self._oom = self._tree.out_of_memory()
            except OSError:
                self._oom = False
        self._cancel_timers()
        if self._outputs:
            self._call.event({"exited": self._result()})
            # Whoever still holds the outputs, e.g. the tail of a pipeline, gets a moment to finish.
            self._killer = self._loop.after(LINGER_S, self._kill)
            for channel in tuple(self._outputs):
                self._call.guarded(self._pump, channel)
        self._settle()

    def _settle(self) -> None:
        """Reply and clean up once everything is over."""
        if self._status is None or self._outputs or self._over:
            return
        self._over = True
        self._cancel_timers()
        self.look()
        if not self._tree.remove():
            self._signal(SIGKILL)
            self._commands.bury(self._tree)
        self._oversight.close()
        self._close_stdin()
        self._close_report()
        if self._dropped:
            self._call.fail(OpError(CANCELLED, "the command was killed on request", exit=self._result()))
        else:
            self._call.reply(self._result())

    def _result(self) -> dict[str, Any]:
        status = self._status or 0
        signaled = os.WIFSIGNALED(status)
        return {
            "code": None if signaled else os.WEXITSTATUS(status),
            "signal": os.WTERMSIG(status) if signaled else None,
            "timed_out": self._timed_out,
            "oom": self._oom,
            "duration_s": self._end_time - self._start_time,
        }

    # ends

    def _expired(self) -> None:
        self._timed_out = True
        self._terminate()

    def _terminate(self) -> None:
        self._cancel_timers()
        # An interactive shell ignores SIGTERM; it goes when its terminal does.
        self._signal(SIGTERM if self._command.size is None else SIGHUP)
        self._killer = self._loop.after(KILL_GRACE_S, self._kill)

    def _kill(self) -> None:
        self._cancel_timers()
        self._signal(SIGKILL)
        self._giving_up = self._loop.after(GIVE_UP_S, self._give_up)

    def _give_up(self) -> None:
        """Nothing outlives SIGKILL but a process in the kernel's hands; do not wait for that one."""
        poller = poll()
        for channel, fd in tuple(self._outputs.items()):
            poller.register(fd, 0)
            # POLLHUP: every writer is gone and only a slow reader is left, which may take its time.
            if not any(events & POLLHUP for ready, events in poller.poll(0) if ready == fd):
                self._close_output(channel)
        if self._status is None:
            self._call.fail(OpError(INTERNAL, f"the command did not die within {GIVE_UP_S:g} s of SIGKILL"))
        self._settle()

    def _signal(self, number: int) -> None:
        try:
            self._tree.signal(number)
        except OSError:
            if self._status is None:
                os.kill(self._pid, number)

    def _cancel_timers(self) -> None:
        for timer in (self._killer, self._giving_up):
            if timer is not None:
                timer.cancel()
        self._killer = self._giving_up = None

    # from the host

    def on_room(self) -> None:
        """More credit: go on reading."""
        for channel in tuple(self._outputs):
            self._pump(channel)

    def on_data(self, channel: int, payload: bytes) -> None:
        """Standard input. After the command closed it, it is swallowed, as a pipe's writer would see SIGPIPE."""
        if channel != STDIN:
            raise OpError(BAD_REQUEST, "a command takes data on channel 0 only")
        if self._stdin < 0 and (self._begun or not self._with_stdin):
            self._call.grant(STDIN, len(payload))
            return
        self._stdin_queue.append(memoryview(payload))
        if self._begun:
            self._feed()

    def on_event(self, event: dict[str, Any]) -> None:
        """A new size of the terminal."""
        try:
            if self._command.size is None:
                raise OpError(BAD_REQUEST, "a command without a terminal has no size")
            self._command.size = terminal.size_of(event.get("resize"))
        except OpError:
            self.on_cancel(True)  # or it would run on with nobody to see it
            raise
        master = self._outputs.get(STDOUT)
        if master is not None:
            terminal.resize(master, self._command.size)

    def on_end(self, channel: int) -> None:
        """End of standard input."""
        self._stdin_ended = True
        if self._begun:
            self._feed()

    def _stdin_ready(self, events: int) -> None:
        if events & BROKEN:
            self._call.guarded(self._drain_stdin)
        else:
            self._call.guarded(self._feed)

    def _feed(self) -> None:
        queue = self._stdin_queue
        consumed = 0
        while queue and self._stdin >= 0:
            try:
                written = os.write(self._stdin, queue[0])
            except BlockingIOError:
                break
            except OSError:  # EPIPE, or EIO of a terminal
                self._drain_stdin()
                break
            consumed += written
            if written < len(queue[0]):
                queue[0] = queue[0][written:]
            else:
                queue.popleft()
        self._call.grant(STDIN, consumed)
        if self._stdin >= 0:
            if self._stdin_ended and not queue:
                self._close_stdin()
            else:
                self._loop.change(self._stdin, WRITE if queue else 0)

    def _drain_stdin(self) -> None:
        """Nobody reads it any more: swallow what is queued and what may come."""
        rest = sum(len(part) for part in self._stdin_queue)
        self._close_stdin()
        self._call.grant(STDIN, rest)

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.forget(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
            self._stdin_queue.clear()

    def on_cancel(self, hard: bool) -> None:
        """SIGTERM, or SIGKILL at once; a command that is over but not yet read is dropped."""
        if not self._begun:
            self._call.fail(OpError(CANCELLED, "the command was cancelled before it started"))
            return
        if not hard and self._status is None:
            self._terminate()
            return
        self._dropped = True
        for channel in tuple(self._outputs):
            self._close_output(channel)
        if self._status is None:
            self._kill()
        self._settle()
