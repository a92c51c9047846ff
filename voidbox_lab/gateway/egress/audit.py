"""The record of a stage's connections: one event for each, and few for many that are refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from voidbox_lab.errors import VoidboxError
from voidbox_lab.spec.events import Body, Denied, Egress

WINDOW_S = 60.0
IN_FULL = 30
"""Refusals in a window with events of their own; the others are counted by rule and target."""
KINDS = 32
"""Targets counted apart in a window; the others are one."""
OTHERS = "other targets"

log = logging.getLogger(__name__)
Record = Callable[[Body], Awaitable[None]]
"""Takes an event of the stage; may wait."""


class Audit:
    """Records what became of connections.

    What was allowed has an event each: the policy's own limit bounds their rate. What was refused costs a guest
    nothing, so that after `IN_FULL` in a minute the rest is told in sum, with the next one after that minute or at
    the end.
    """

    def __init__(self, record: Record, clock: Callable[[], float] = time.monotonic) -> None:
        self._record, self._clock = record, clock
        self._window = clock()
        self._in_full = 0
        self._counted: dict[tuple[str, str], tuple[str, int]] = {}

    async def ended(self, event: Egress, rule: str | None = None) -> None:
        """A connection is over, or did not come to be.

        Args:
            rule: what of the policy was hit, for the user to read; None: nothing was.
        """
        now = self._clock()
        if now >= self._window + WINDOW_S:
            self._window, self._in_full = now, 0
            await self._tell()
        if event.verdict == "denied":
            self._in_full += 1
            if self._in_full > IN_FULL:
                self._count(event, rule or "egress")
                return
        await self._keep(event)
        if rule is not None:
            await self._keep(Denied(rule=rule, subject=_subject(event), message=event.reason))

    async def close(self) -> None:
        """Tell what has not been told."""
        await self._tell()

    def _count(self, event: Egress, rule: str) -> None:
        key = rule, _subject(event)
        if key not in self._counted and len(self._counted) >= KINDS:
            key = rule, OTHERS
        self._counted[key] = event.reason, self._counted.get(key, ("", 0))[1] + 1

    async def _tell(self) -> None:
        counted, self._counted = self._counted, {}
        for (rule, subject), (reason, count) in counted.items():
            await self._keep(Denied(rule=rule, subject=subject, message=reason, count=count))

    async def _keep(self, body: Body) -> None:
        try:
            await self._record(body)
        except VoidboxError as error:
            # The store's trouble: it stays pending there, and the stage hears of it by its other events.
            log.error("a connection's end is not recorded yet: %s", error.message)


def _subject(event: Egress) -> str:
    if not event.port:
        return event.host
    return f"[{event.host}]:{event.port}" if ":" in event.host else f"{event.host}:{event.port}"
