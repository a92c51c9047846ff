"""Commands of a box: admitted, started a few at a time, reaped; `running` is one of them.

A command's stream ends when it is over for good: its leader has exited, its outputs are at their end and its tree
is dead. What a leader leaves behind is killed; a service lives as long as the command that holds it.
"""

from __future__ import annotations

import os
from _collections import deque
from errno import EACCES, ENOENT, ENOEXEC

from wire.protocol import (
    AGENT_HOME,
    AGENT_UID,
    BAD_REQUEST,
    BUSY,
    DENIED,
    INTERNAL,
    MAX_ARGS,
    MAX_EXECS,
    NOT_EXECUTABLE,
    NOT_FOUND,
)

from . import image, terminal
from . import policy as policies
from .calls import Call, OpError, os_error
from .lookup import View
from .running import Running
from .spawn import Command
from .trees import CgroupTree, SessionTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .loop import Loop, Timer
    from .policy import Policy

SWEEP_S = 0.05
MAX_STARTING = 4
"""Commands between fork and exec at once. The others queue, so that a burst of requests does not keep the first
of them from being answered: a fork costs 10 ms and more in an emulated guest."""


class Commands:
    """All commands of a box, and the reaping of every child PID 1 has or inherits."""

    def __init__(self, loop: Loop, policy: Policy, *, cgroups: bool, switch_user: bool) -> None:
        self._loop = loop
        self._policy = policy
        self._tree = CgroupTree if cgroups else SessionTree
        self._switch_user = switch_user
        self._running: dict[int, Running] = {}
        self._queue: deque[Running] = deque()
        self._starting = 0
        self._dying: list[CgroupTree | SessionTree] = []
        self._sweeper: Timer | None = None
        self._serial = 0

    def operation(self, call: Call) -> None:
        """Start a command; see `wire.protocol` for the fields."""
        if len(self._running) + len(self._queue) >= MAX_EXECS:
            raise OpError(BUSY, f"{MAX_EXECS} commands are running in this box already")
        command = self._command(call)
        timeout = call.number("timeout_s", 0.0, 0.0, 1e7)
        running = Running(self._loop, self, call, command, call.flag("stdin"), timeout)
        call.handler = running
        self._queue.append(running)
        self._start_some()

    def _start_some(self) -> None:
        while self._queue and self._starting < MAX_STARTING:
            self._starting += 1
            if not self._queue.popleft().begin():
                self._starting -= 1

    def has_begun(self) -> None:
        """A command that was between fork and exec is so no more: the next may."""
        self._starting -= 1
        self._start_some()

    def make_tree(self) -> CgroupTree | SessionTree:
        """An empty tree for one command. Raises OSError."""
        self._serial += 1
        return self._tree(f"x{self._serial}")

    def started(self, pid: int, running: Running) -> None:
        """`running` has the leader `pid`."""
        self._running[pid] = running

    def reap(self) -> None:
        """Collect every dead child; tell the commands whose leaders are among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            running = self._running.pop(pid, None)
            if running is not None:
                running.exited(status)
        self._sweep()

    def look(self) -> None:
        """Have every command tell what it was denied; from time to time, besides at its end."""
        for running in self._running.values():
            running.look()

    def bury(self, tree: CgroupTree | SessionTree) -> None:
        """Remove `tree` as soon as the last of its processes is reaped."""
        if not tree.remove():
            self._dying.append(tree)
            self._arm()

    def _sweep(self) -> None:
        if self._dying:
            self._dying = [tree for tree in self._dying if not tree.remove()]
            self._arm()

    def _arm(self) -> None:
        if self._dying and self._sweeper is None:
            self._sweeper = self._loop.after(SWEEP_S, self._swept)

    def _swept(self) -> None:
        self._sweeper = None
        self._sweep()

    def _command(self, call: Call) -> Command:
        argv = call.request.get("argv")
        env = call.request.get("env", {})
        if (
            type(argv) is not list
            or not 1 <= len(argv) <= MAX_ARGS
            or not all(_plain(a) for a in argv)
            or not argv[0]
        ):
            raise OpError(BAD_REQUEST, f"argv must be 1 to {MAX_ARGS} strings without NUL, the first not empty")
        if type(env) is not dict or len(env) > MAX_ARGS or not all(_plain(v) for v in env.values()):
            raise OpError(BAD_REQUEST, f"env must be at most {MAX_ARGS} strings without NUL")
        if not all(key and "=" not in key and "\0" not in key for key in env):
            raise OpError(BAD_REQUEST, "a name in env is empty or holds '=' or NUL")
        user = call.text("user", "agent")
        if user not in ("agent", "root"):
            raise OpError(BAD_REQUEST, "user must be agent or root")
        agent = user == "agent"
        home = AGENT_HOME if agent else "/root"
        full = {**image.environment(), "HOME": home, "USER": user, "LOGNAME": user, **env}
        limits = policies.rlimits(call.request.get("rlimits", {}))
        pty = call.request.get("pty")
        return Command(
            [os.fsencode(a) for a in argv],
            {os.fsencode(k): os.fsencode(v) for k, v in full.items()},
            os.fsencode(call.path("cwd", "/workspace")),
            (AGENT_UID if agent else 0) if self._switch_user else None,
            {**self._policy.rules.limits, **limits} if agent else limits,
            self._policy if agent else None,
            None if pty is None else terminal.size_of(pty),
        )

    def explain(self, stage: str, number: int, command: Command) -> OpError:
        """The typed error for a report from between fork and exec."""
        program = os.fsdecode(command.argv[0])
        if stage == "cwd":
            return os_error(OSError(number, ""), f"working directory {os.fsdecode(command.cwd)}")
        if stage == "exec" and number == ENOENT:
            return OpError(NOT_FOUND, f"there is no program {program} in this image")
        if stage == "exec" and number == EACCES:
            reason = _refusal(command)
            if reason:
                return OpError(DENIED, reason, rule="commands")
            return OpError(DENIED, f"{program} is not executable for this user")
        if stage == "exec" and number == ENOEXEC:
            return OpError(NOT_EXECUTABLE, f"{program} is not a program this guest can run")
        if not number:
            return OpError(INTERNAL, f"{program} could not be started (at {stage})")
        return os_error(OSError(number, ""), f"{program} (at {stage})")


def _refusal(command: Command) -> str | None:
    """Why the policy of `command` does not let it run, if that is why it does not."""
    view = View(cwd=os.fsdecode(command.cwd))
    for path in command.candidates() if command.policy is not None else ():
        try:
            reason = command.policy.rules.programs.refusal(os.fsdecode(path), view, lambda: command.argv)
        except OSError:
            continue  # there is nothing there, or nothing that anybody could run
        if reason:
            return reason
    return None


def _plain(value: object) -> bool:
    return type(value) is str and "\0" not in value
