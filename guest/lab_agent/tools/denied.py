"""Refusals of the stage's policy in words: the kernel says no more than EACCES.

What the permissions of a file allow and the kernel refuses nevertheless, the policy refused: access(2) asks the
permissions alone.
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, EPERM

_REFUSED = ": Permission denied"
_LINES = 5
"""Lines from the end of an output that are looked at."""


def exec_note(output: str) -> str:
    """A sentence about a program that a shell could not execute because of the policy; "" if there is none."""
    for line in output.splitlines()[-_LINES:]:
        # As shells say it: "bash: line 1: ./program: Permission denied".
        path = line.removesuffix(_REFUSED).rpartition(": ")[2]
        if line.endswith(_REFUSED) and _executable(path):
            return (
                f"[the policy of this stage (rule 'commands') does not let {path} run; "
                "a script runs through its interpreter, as in: bash SCRIPT]"
            )
    return ""


def file_note(tool: str, error: OSError) -> str:
    """A sentence about a file that `tool` could not open because of the policy; "" if something else was wrong."""
    path = error.filename
    if error.errno not in (EACCES, EPERM) or not isinstance(path, str):
        return ""
    rule, mode = ("read", os.R_OK) if tool == "read" else ("write", os.W_OK)
    asked = path if os.path.lexists(path) else os.path.dirname(path) or "."
    if not os.access(asked, mode):
        return ""
    return f"The policy of this stage (rule '{rule}') does not let you {rule} {path}."


def _executable(path: str) -> bool:
    # Not access(2): on a file system mounted noexec, as the agent's own are, nothing is executable to it.
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)
