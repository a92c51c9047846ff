"""How an attack is carried out: a program of the agent's, as uid 1000, in a real box."""

from __future__ import annotations

import textwrap

from voidbox_lab.box import Box, Completed

TOOLS = """
import ctypes, errno, os, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)

def attempt(name, function, *arguments):
    "What came of it, in one line: ok, or the errno's name."
    try:
        result = function(*arguments)
    except OSError as e:
        print(name, errno.errorcode.get(e.errno, e.errno), flush=True)
    except Exception as e:
        print(name, type(e).__name__, flush=True)
    else:
        print(name, "ok", repr(result)[:200], flush=True)

def syscall(number, *arguments):
    "A system call past the C library's wrappers; raises OSError."
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
"""


async def attack(box: Box, program: str, *, timeout_s: float = 60) -> Completed:
    """Run the Python `program`, with `TOOLS` before it, as the agent."""
    source = TOOLS + textwrap.dedent(program)
    return await box.run(["python3", "-I", "-c", source], timeout_s=timeout_s)


def outcomes(done: Completed) -> dict[str, str]:
    """Name to outcome of each `attempt`: ``ok``, or an errno's name."""
    lines = (line.split(" ", 2) for line in done.stdout.decode(errors="replace").splitlines())
    return {words[0]: words[1] for words in lines if len(words) > 1}


def rules(done: Completed) -> set[str]:
    """The names of the rules that denied something."""
    return {denied.rule for denied in done.denied}
