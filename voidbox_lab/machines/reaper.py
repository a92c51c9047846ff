"""Takes in the QEMUs that the embedded driver starts, and reaps them. Not for children of anybody else.

libvirt lets QEMU become a daemon and then watches for its process id to vanish. That takes a parent that
reaps: the init of a real system does at once, but many containers' first process does so late or never, and
then each probe of QEMU takes 20 s longer and libvirt never sees a machine end. So the process with the
embedded driver becomes the parent of its orphaned descendants (PR_SET_CHILD_SUBREAPER, prctl(2)), and
collects those that are QEMU.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05
"""libvirt itself looks every 0.2 s."""
PATIENCE_S = 60.0
"""Without a QEMU for so long, the thread sleeps until the next `expect`."""

_lock = threading.Lock()
_expected = threading.Event()
_thread: threading.Thread | None = None


def expect() -> None:
    """A QEMU is about to be started by this process."""
    global _thread
    with _lock:
        if _thread is None:
            children = _children_file()
            # Without the list of children (CONFIG_PROC_CHILDREN) nothing is taken in that could not be reaped.
            if not children.exists():
                return
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            _thread = threading.Thread(target=_run, args=(children,), name="qemu-reaper", daemon=True)
            _thread.start()
    _expected.set()


def _children_file() -> Path:
    """Orphans come to the first thread (kernel/exit.c, find_new_reaper)."""
    return Path(f"/proc/self/task/{os.getpid()}/children")


def _run(children: Path) -> None:
    quiet = 0.0
    while True:
        _expected.wait()
        if _reap(children):
            quiet = 0.0
        elif (quiet := quiet + POLL_S) > PATIENCE_S:
            _expected.clear()
            quiet = 0.0
        time.sleep(POLL_S)


def _reap(children: Path) -> bool:
    """Collect ended QEMUs; whether there were any QEMUs, ended or not."""
    seen = False
    for pid in map(int, children.read_text(encoding="ascii").split()):
        with suppress(OSError):
            name, _, rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
            state, _, _, session, *_ = rest.split()
            # A QEMU in our own session was started directly, by code that waits for it itself.
            if "(qemu-" not in name or int(session) == os.getsid(0):
                continue
            seen = True
            if state == "Z":
                os.waitpid(pid, os.WNOHANG)
    return seen
