"""libvirt's event loop in a thread. Not asyncio's: events cross over with ``call_soon_threadsafe``.

The loop is one per process and must be registered before the first connection is opened; `acquire` and
`release` count its users, and the thread ends with the last of them.
"""

from __future__ import annotations

import threading

from voidbox_lab.machines.calls import libvirt

_lock = threading.Lock()
_registered = False
_users = 0
_current: _LoopThread | None = None


class _LoopThread(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="libvirt-events", daemon=True)
        self._ending = False

    def run(self) -> None:
        while not self._ending:
            libvirt.virEventRunDefaultImpl()

    def end(self) -> None:
        """Ask the thread to leave; it may take one turn of the loop."""
        self._ending = True
        # A timer that is due at once makes the blocked loop turn.
        self._timer = libvirt.virEventAddTimeout(0, self._wake, None)

    def _wake(self, timer: int, _opaque: object) -> None:
        libvirt.virEventRemoveTimeout(timer)


def acquire() -> None:
    """Make sure the loop runs until `release`."""
    global _registered, _users, _current
    with _lock:
        if not _registered:
            libvirt.virEventRegisterDefaultImpl()
            _registered = True
        _users += 1
        if _current is None:
            _current = _LoopThread()
            _current.start()


def release() -> None:
    """Give up one `acquire`. Waits up to 2 s for the thread when it was the last; blocking."""
    global _users, _current
    with _lock:
        _users -= 1
        thread = None
        if _users == 0:
            thread, _current = _current, None
    if thread is not None:
        thread.end()
        thread.join(2)
