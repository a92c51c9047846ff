"""Both ends of a command's standard streams: three pipes, or one terminal."""

from __future__ import annotations

import os

from wire.protocol import STDERR, STDOUT

from . import terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .spawn import Command


def open_streams(
    command: Command, with_stdin: bool, opened: list[int]
) -> tuple[tuple[int, int, int], int, dict[int, int]]:
    """The command's three ends, our end of its input (-1: it has none), and ours of its outputs by channel.

    All are close-on-exec. What was opened is in `opened`, also when OSError is raised.
    """
    if command.size is not None:
        master, slave = terminal.open_pair(command.size, command.uid)
        opened += master, slave
        ours_in = -1
        if with_stdin:
            # Of its own, since the loop has one callback per descriptor.
            ours_in = os.dup(master)
            opened.append(ours_in)
        return (slave, slave, slave), ours_in, {STDOUT: master}
    if with_stdin:
        child_in, ours_in = os.pipe2(os.O_CLOEXEC)
        opened += child_in, ours_in
    else:
        child_in, ours_in = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
        opened.append(child_in)
    ours_out, child_out = os.pipe2(os.O_CLOEXEC)
    opened += ours_out, child_out
    ours_err, child_err = os.pipe2(os.O_CLOEXEC)
    opened += ours_err, child_err
    return (child_in, child_out, child_err), ours_in, {STDOUT: ours_out, STDERR: ours_err}
