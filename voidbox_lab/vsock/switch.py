"""The switch between the guest's rings and the host's UNIX sockets: every connection of one box.

Not for vhost-user (`backend`) or process life (`device`). Its parts: `table` (who is connected),
`doors` (how connections begin), `uplink` and `downlink` (how bytes go). One `turn` does a bounded
amount of work and never blocks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from voidbox_lab.vsock.doors import Doors
from voidbox_lab.vsock.downlink import Downlink
from voidbox_lab.vsock.table import Table
from voidbox_lab.vsock.uplink import Uplink

if TYPE_CHECKING:
    import socket

    from voidbox_lab.vsock.poller import Poller

TICK_S = 0.25
"""Seconds between looks at deadlines, while there are any."""
BACKLOG_TICK_S = 0.01
"""Seconds between tries to reach a host listener whose backlog is full."""


class Switch:
    """Carries connections between `rx`/`tx` and UNIX sockets.

    `listener` accepts host clients, who say ``CONNECT <port>\\n`` and hear ``OK <port>\\n``
    (Firecracker's convention) or ``REFUSED``, or ``BUSY``. A guest that dials host
    port P is connected to the UNIX socket ``<path>_P``.
    """

    def __init__(self, poller: Poller, *, cid: int, path: str, listener: socket.socket) -> None:
        self.cid = cid
        self.table = Table(poller, cid)
        self.doors = Doors(poller, self.table, path=path, listener=listener)
        self.uplink = Uplink(poller, self.table, self.doors)
        self.downlink = Downlink(self.table)
        self.doors.writable = self.uplink.flush_backlog
        self.rx, self.tx = self.downlink.rx, self.uplink.tx
        self._swept = 0.0

    def turn(self) -> bool:
        """Move what can be moved, within bounds; True if more could be done at once.

        Raises:
            RingFault, MemoryFault: the guest's rings cannot be trusted any more.
        """
        more = self.tx.running and self.uplink.turn()
        if self.rx.running:
            gated = self.uplink.gated
            more = self.downlink.turn() or more
            # Packets left in the tx ring for want of room to answer are readable again.
            more = more or (gated and not self.uplink.gated)
        return more

    def timeout(self) -> float | None:
        """Seconds after which `expire` wants to be called; None for never."""
        if self.table.waiting:
            return BACKLOG_TICK_S
        if self.table.timed or self.table.pending or not self.doors.listening:
            return TICK_S
        return None

    def expire(self) -> None:
        """End what has waited too long and try full backlogs again."""
        self.doors.retry()
        now = time.monotonic()
        if now >= self._swept + TICK_S:
            self._swept = now
            self.table.expire(now)
            self.doors.expire(now)

    def reset(self) -> None:
        """Forget every connection: the driver starts anew and knows none of them."""
        self.table.clear()

    def close(self) -> None:
        """End everything, the listener first: a client that is cut off can see that there is no other."""
        self.doors.close()
        self.table.clear()
