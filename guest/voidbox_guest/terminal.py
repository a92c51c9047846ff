"""Pseudo-terminals for commands (pty(7), ioctl_tty(2)): opened here, entered by the child, resized by the host.

What is typed and shown is `running`'s business: to it the master is one more pipe, whose end of file is EIO.
"""

from __future__ import annotations

import os
from fcntl import ioctl

from wire.protocol import BAD_REQUEST, MAX_COLS, MAX_ROWS

from .calls import OpError

# asm-generic/ioctls.h: the same on x86-64 and arm64.
_TCGETS, _TCSETS, _TIOCSCTTY, _TIOCSWINSZ = 0x5401, 0x5402, 0x540E, 0x5414
_TERMIOS_SIZE = 36
"""Bytes of the kernel's struct termios (asm-generic/termbits.h); c_iflag comes first."""
_IUTF8 = 0x4000


def size_of(given: object) -> tuple[int, int]:
    """Rows and columns from ``{"rows": …, "cols": …}``; both are bounded."""
    if type(given) is dict:
        rows, cols = given.get("rows"), given.get("cols")
        if type(rows) is int and type(cols) is int and 1 <= rows <= MAX_ROWS and 1 <= cols <= MAX_COLS:
            return rows, cols
    raise OpError(BAD_REQUEST, f"a terminal has 1 to {MAX_ROWS} rows and 1 to {MAX_COLS} cols")


def open_pair(size: tuple[int, int], uid: int | None) -> tuple[int, int]:
    """Master and slave of a new terminal of `size`, which belongs to `uid`. Raises OSError, nothing left open.

    Both are close-on-exec, and neither becomes this process's controlling terminal (O_NOCTTY in openpty(3)).
    """
    master, slave = os.openpty()
    try:
        resize(master, size)
        # Without it an erased character of several bytes leaves some of them in the line (termios(3)).
        termios = bytearray(ioctl(slave, _TCGETS, bytes(_TERMIOS_SIZE)))
        flags = int.from_bytes(termios[:4], "little") | _IUTF8
        ioctl(slave, _TCSETS, flags.to_bytes(4, "little") + bytes(termios[4:]))
        if uid is not None:
            # As a login does: programs open their terminal by name, and others may not write to it.
            os.fchown(slave, uid, uid)
            os.fchmod(slave, 0o600)
    except OSError:
        os.close(master)
        os.close(slave)
        raise
    return master, slave


def take_control(fd: int) -> None:
    """Make `fd` the controlling terminal of this process, which leads a session and has none."""
    ioctl(fd, _TIOCSCTTY, 0)


def resize(master: int, size: tuple[int, int]) -> None:
    """Set the window's size; the kernel sends SIGWINCH to the foreground if it is another one."""
    # struct winsize: rows, columns, and two sizes in pixels that nobody sets.
    rows, cols = size
    ioctl(master, _TIOCSWINSZ, rows.to_bytes(2, "little") + cols.to_bytes(2, "little") + bytes(4))
