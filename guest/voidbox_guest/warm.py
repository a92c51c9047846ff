"""The default agent without a new interpreter: a forked child of PID 1 becomes lab-agent by calling its `main`.

`spawn` asks `stands_for` where it would have called execve(2), after everything else it does to a child, and
`become` does the rest of what execve would have done: descriptors, signals, environment, name. What is in doubt
(another launcher, a program the policy may deny) is left to execve, so that the kernel decides it as ever.

The child inherits PID 1's memory, not its rights. There is no box secret in it (see `boot.take_secret`), and the
process is not dumpable: prctl(2) PR_SET_DUMPABLE makes /proc/PID of it root's and ptrace(2) of it impossible, so
that other processes of uid 1000, the agent's own tools among them, cannot read it. Nothing in lab-agent needs its
own /proc/self, and the programs it starts are dumpable again. Nothing here may import `random`, `ssl` or whatever
else keeps the state of a generator: two children, or two clones of one machine, would draw the same numbers.
"""

from __future__ import annotations

import gc
import os
import sys
from _signal import SIG_DFL, SIG_IGN, SIGINT, SIGPIPE, SIGXFSZ, default_int_handler, signal

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .policy import Policy
    from .spawn import Command

LAUNCHERS = ("/usr/lib/voidbox/lab_agent/launcher.py", "/usr/lib/voidbox/lab_agent/launcher.sh")
"""What the image's own lab-agent is a copy of; one that a layer or root has put there is not."""
_MAX_FD = 1 << 20
_MAX_LAUNCHER = 4096


def preload() -> None:
    """Import what lab-agent needs up to its first answer, so that no child has to. Takes 0.2 s and more under TCG.

    For PID 1 when it has nothing else to do, above all before it becomes a template. Without it the child imports.
    """
    # The two that it imports only where it must: for quoted descriptions, and to name a signal.
    import re  # noqa: F401
    import signal  # noqa: F401

    import lab_agent.main  # noqa: F401

    # All that is here by now stays. A collection that walked over it would copy its pages, in each fork and clone.
    gc.collect()
    gc.freeze()


def stands_for(path: bytes, policy: Policy | None) -> bool:
    """Whether `become` may take the place of execve of `path`; False whenever execve might refuse."""
    if not path.endswith(b"lab-agent") or not os.access(path, os.X_OK):
        return False
    try:
        if _text(path) not in [_text(launcher) for launcher in LAUNCHERS if os.path.exists(launcher)]:
            return False
        return policy is None or policy.rules.programs.refusal(os.fsdecode(path)) is None
    except OSError:
        return False


def _text(path: bytes | str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(fd, _MAX_LAUNCHER)
    finally:
        os.close(fd)


def become(path: bytes, command: Command) -> NoReturn:
    """Run lab-agent in this process, as execve of `path` would, and exit.

    Raises OSError while that can still be reported.
    """
    # Objects of PID 1 own descriptor numbers: none of them may be collected once these numbers are used anew, and
    # its standard streams must not be either, which would write what they hold.
    gc.freeze()
    _inherited = sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__
    kernel.make_undumpable()
    kernel.set_name(b"lab-agent")
    # As the interpreter does when it starts: a broken pipe and a file too long are errors, not deaths.
    signal(SIGPIPE, SIG_IGN)
    signal(SIGXFSZ, SIG_IGN)
    signal(SIGINT, default_int_handler)
    # The report pipe is among them: its end says that the program runs, as it does after an execve.
    os.closerange(3, _MAX_FD)
    status = 1
    try:
        _take_on(path, command)
        from lab_agent import main

        status = main.main(sys.argv[1:], dict(os.environ), sys.stdin.buffer, sys.stdout.buffer)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal(SIGINT, SIG_DFL)
            os.kill(os.getpid(), SIGINT)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue  # nobody listens any more
        os._exit(status)


def _take_on(path: bytes, command: Command) -> None:
    """Standard streams, arguments and environment of a fresh interpreter."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.argv = [os.fsdecode(path), *map(os.fsdecode, command.argv[1:])]
    os.environ.clear()
    os.environb.update(command.env)
