"""The user's own terminal while another one, in a box, is shown on it: raw mode, size, and the way back.

Nothing here assumes that there is a terminal: without one, sizes and kinds are defaults and raw mode is none.
"""

from __future__ import annotations

import os
import re
import termios
import time
import tty
from contextlib import suppress
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel
from anyio.to_thread import run_sync

STDIN, STDOUT, STDERR = 0, 1, 2
READ_SIZE = 64 * 1024
LARGEST = 4096
"""Rows and columns of the largest terminal that a box takes."""
ANSWER_S = 0.05
"""Seconds in which a terminal answers what the box asked it in its last words."""
TIDY = b"\x1b[?1000;1002;1003;1004;1006;1015;2004l\x1b[?25h\x1b[0m"
"""Mouse and focus reports and bracketed paste off, cursor on, plain characters (xterm's control sequences): a
program that was cut off leaves them, and the user's own shell would take the reports for what is typed."""


class Screen:
    """As a context manager it leaves the terminal as it was, whatever happens but SIGKILL."""

    def __init__(self) -> None:
        self.by_hand = os.isatty(STDIN)
        """Whether standard input is a terminal."""
        self._saved: list[Any] | None = None

    def size(self) -> tuple[int, int]:
        """Rows and columns now; 24 and 80 where none are known."""
        for fd in (STDIN, STDOUT, STDERR):
            with suppress(OSError):
                cols, rows = os.get_terminal_size(fd)
                if rows > 0 and cols > 0:
                    return min(rows, LARGEST), min(cols, LARGEST)
        return 24, 80

    def kind(self) -> str:
        """TERM, or ``dumb`` where it is not set or nothing that terminfo(5) could know."""
        kind = os.environ.get("TERM", "")
        return kind if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", kind) else "dumb"

    def raw(self) -> None:
        """Pass every key on as it is; what was typed already stays. Nothing happens without a terminal."""
        if self.by_hand and self._saved is None:
            saved = termios.tcgetattr(STDIN)
            self._saved = saved
            tty.setraw(STDIN, termios.TCSADRAIN)

    def restore(self) -> None:
        """Undo `raw`, and drop what the terminal says to the box's last words: it is not for the user's shell."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        # Neither matters where the terminal is gone.
        with suppress(OSError):
            if os.isatty(STDOUT) and self.kind() != "dumb":
                os.write(STDOUT, TIDY)
            time.sleep(ANSWER_S)
        with suppress(termios.error):
            termios.tcsetattr(STDIN, termios.TCSAFLUSH, saved)

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


async def read() -> bytes:
    """At least one byte of standard input; none at its end, or where there is no such descriptor."""
    while True:
        try:
            await anyio.wait_readable(STDIN)
        except PermissionError:
            # A regular file, which epoll(7) does not take, is always ready.
            await anyio.lowlevel.checkpoint()
        except OSError:
            return b""
        try:
            return os.read(STDIN, READ_SIZE)
        except BlockingIOError:
            continue
        except OSError:
            return b""


async def write(data: bytes) -> None:
    """All of `data` to standard output, which may take its time: a thread waits for it. Raises OSError."""
    await run_sync(_write, data, abandon_on_cancel=True)


def _write(data: bytes) -> None:
    with memoryview(data) as rest:
        done = 0
        while done < len(rest):
            done += os.write(STDOUT, rest[done:])
