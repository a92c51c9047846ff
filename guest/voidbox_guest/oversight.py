"""What is watched of one command: its denied calls, and what its tree hit of its caps."""

from __future__ import annotations

import resource

from .denials import Denials
from .supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .calls import Call
    from .loop import Loop
    from .spawn import Command
    from .trees import CgroupTree, SessionTree


def cap(tree: CgroupTree | SessionTree, command: Command) -> None:
    """Bound `tree` as the policy of `command` says. Raises OSError."""
    if command.policy is None:
        return
    caps = command.policy.rules.caps
    tree.cap(caps.memory, pids_within(command)[0], caps.cpus)


def pids_within(command: Command) -> tuple[int | None, str]:
    """How many processes the tree of `command` may have, and the rule that says so.

    One less than RLIMIT_NPROC where that is the lower: the kernel looks at it first and tells nobody (fork(2)).
    """
    caps = command.policy.rules.caps.pids if command.policy else None
    most = command.limits.get(resource.RLIMIT_NPROC)
    if most is not None and most > 1 and (caps is None or most <= caps):
        return most - 1, "rlimits.processes"
    return caps, "caps.pids"


class Oversight:
    """Of one command, from its fork to its reply."""

    __slots__ = ("_command", "_denials", "_loop", "_rules", "_seen", "_supervisor", "_tree")

    def __init__(self, loop: Loop, call: Call, command: Command, tree: CgroupTree | SessionTree) -> None:
        self._loop, self._command, self._tree = loop, command, tree
        self._rules = command.policy.rules if command.policy else None
        self._denials = Denials(loop, call)
        self._supervisor: Supervisor | None = None
        self._seen = (0, 0)

    def listen(self, listener: int) -> None:
        """`listener`, which is now ours, tells of the tree's system calls."""
        if self._rules is not None:
            self._supervisor = Supervisor(self._loop, listener, self._rules, self._denials)

    def look(self) -> None:
        """Count what the tree hit since the last look."""
        if self._rules is None:
            return
        try:
            killed, refused = self._tree.hits()
        except OSError:
            return  # the tree is gone, and what it hit with it
        before, self._seen = self._seen, (killed, refused)
        if killed > before[0]:
            memory = self._rules.caps.memory
            most = f"{memory >> 20} MiB" if memory else "the box's memory"
            self._denials.add(
                "caps.memory",
                most,
                f"The command and what it started used up {most}, and the largest of them was killed; "
                f"raise {'caps.memory_mb in the policy' if memory else 'memory_mb of the stage'}.",
                count=killed - before[0],
            )
        if refused > before[1]:
            most, rule = pids_within(self._command)
            self._denials.add(
                rule,
                f"{most} processes",
                f"The command and what it started may be {most} processes and threads, and no more could be "
                f"started; raise {rule} in the policy.",
                count=refused - before[1],
            )

    def flush(self) -> None:
        """Tell all that is known by now."""
        self.look()
        self._denials.flush()

    def close(self) -> None:
        """The tree is dead, or about to be."""
        self._denials.close()
        if self._supervisor is not None:
            self._supervisor.close()
