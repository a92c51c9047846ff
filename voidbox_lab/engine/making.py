"""What is made for a stage before its box can start, layers of packages above all, as events of the stage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio.from_thread

from voidbox_lab.images import Progress, listening
from voidbox_lab.spec.events import Body, Notice

MAX_NOTICES = 200
"""Most notices of one making: a box has at most 64 packages, and each is planned, fetched and packed."""


@contextmanager
def noticed(emit: Callable[[Body], Awaitable[None]]) -> Iterator[None]:
    """What threads of this task make meanwhile is told to `emit`, each step once."""
    seen: set[str] = set()

    async def tell(message: str) -> None:
        await emit(Notice(message=message))

    def report(progress: Progress) -> None:
        if progress.message not in seen and len(seen) < MAX_NOTICES:
            seen.add(progress.message)
            # In the thread that makes it; ends there, too, when the stage is cancelled.
            anyio.from_thread.run(tell, progress.message)

    with listening(report):
        yield
