"""From fork to execve: starts one command with its own session, descriptors, limits and identity.

The child runs a few dozen lines of this warm interpreter and becomes the program; nothing is started twice. The
default agent is not even started once: see `warm`.
What fails between fork and exec comes back through a close-on-exec socket as ``stage:errno``. The same way comes
the descriptor on which the supervisor of the policy listens, just before the program runs.
"""

from __future__ import annotations

import os
import resource
from _signal import SIG_DFL, SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGXFSZ, set_wakeup_fd, signal
from errno import EACCES, ENOENT, ENOTDIR

from . import kernel, terminal, warm
from .image import PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as raw_socket

    from .policy import Policy

MAX_REPORT = 64
LISTENER = b"listener"
"""The report that carries the supervisor's descriptor."""


class Command:
    """What to run, checked. `uid` None means: as this process (tests on a host); `size` None: no terminal."""

    __slots__ = ("argv", "cwd", "env", "limits", "policy", "size", "uid")

    def __init__(
        self,
        argv: list[bytes],
        env: dict[bytes, bytes],
        cwd: bytes,
        uid: int | None,
        limits: dict[int, int],
        policy: Policy | None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.argv, self.env, self.cwd = argv, env, cwd
        self.uid, self.limits, self.policy, self.size = uid, limits, policy, size

    def candidates(self) -> list[bytes]:
        """Where the program may be: the name itself if it has a slash, else along the command's own PATH."""
        name = self.argv[0]
        if b"/" in name:
            return [name]
        path = self.env.get(b"PATH", PATH.encode())
        return [directory + b"/" + name for directory in path.split(b":") if directory]


def spawn(command: Command, stdin: int, stdout: int, stderr: int, report: raw_socket, cgroup: int) -> int:
    """Fork and, in the child, become `command`. Returns the child's pid.

    The descriptors are the child's ends, all three one terminal if `command` has a size; `report` is the
    child's end of a socket for messages, `cgroup` an open cgroup.procs or -1. Raises OSError if fork(2) fails.
    """
    pid = os.fork()
    if pid:
        return pid
    stage = "setup"
    try:
        set_wakeup_fd(-1)
        for number in (SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGXFSZ):
            signal(number, SIG_DFL)
        os.setsid()
        if cgroup >= 0:
            os.write(cgroup, b"0")
        for target, fd in enumerate((stdin, stdout, stderr)):
            os.dup2(fd, target)
        # Each is close-on-exec by itself. One that were not would be another command's listener, say.
        kernel.keep_from_exec(3)
        if command.size is not None:
            terminal.take_control(0)
        os.umask(0o022)
        for number, value in command.limits.items():
            resource.setrlimit(number, _within_hard(number, value))
        stage = "user"
        if command.uid is not None:
            os.setgroups([])
            os.setresgid(command.uid, command.uid, command.uid)
            os.setresuid(command.uid, command.uid, command.uid)
        stage = "cwd"
        os.chdir(command.cwd)
        stage = "policy"
        if command.policy is not None:
            listener = command.policy.enter()
            if listener >= 0:
                # SOL_SOCKET, SCM_RIGHTS (unix(7)).
                report.sendmsg([LISTENER], [(1, 1, listener.to_bytes(4, "little"))])
                os.close(listener)
        stage = "exec"
        number = ENOENT
        candidates = command.candidates()
        for path in candidates:
            try:
                if len(candidates) > 1:
                    os.stat(path)  # cheaper than having the supervisor asked about it
                if warm.stands_for(path, command.policy):
                    warm.become(path, command)
                os.execve(path, command.argv, command.env)
            except OSError as error:
                # As execvp(3): keep looking, but a refusal says more than an absence.
                if error.errno not in (ENOENT, ENOTDIR, EACCES):
                    number = error.errno or ENOENT
                    break
                if error.errno == EACCES:
                    number = EACCES
        report.send(f"exec:{number}".encode())
    except OSError as error:
        report.send(f"{stage}:{error.errno or 0}".encode())
    except BaseException as error:
        report.send(f"{stage}:0:{type(error).__name__}".encode()[:MAX_REPORT])
    finally:
        os._exit(127)


def _within_hard(number: int, value: int) -> tuple[int, int]:
    """Both limits at `value`; an unprivileged process (tests) may not raise its hard limit."""
    hard = resource.getrlimit(number)[1]
    if os.geteuid() != 0 and hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    return value, value
