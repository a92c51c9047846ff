"""The guest's event loop: events go to whom they are for, and timers are kept as long as they are wanted."""

from __future__ import annotations

import importlib
import os
import sys
from select import EPOLLIN
from typing import Any

from voidbox_lab.resources import data_dir

sys.path.append(str(data_dir("guest")))
try:
    guest = importlib.import_module("voidbox_guest.loop")
finally:
    sys.path.pop()


def test_an_event_is_not_for_who_has_the_descriptor_next() -> None:
    """Of two that are ready at once, the first to be served closes the other, and a new one gets its number."""
    loop = guest.Loop()
    pipes = [os.pipe() for _ in range(2)]
    new: list[int] = []
    stray: list[int] = []

    def served(fd: int) -> Any:
        def ready(_: int) -> None:
            loop.forget(fd)
            (other,) = [reader for reader, _ in pipes if reader != fd]
            loop.forget(other)
            os.close(other)
            new.extend(os.pipe())
            assert new[0] == other
            loop.watch(new[0], EPOLLIN, stray.append)
            loop.after(0.1, loop.stop)

        return ready

    for reader, writer in pipes:
        os.write(writer, b"x")
        loop.watch(reader, EPOLLIN, served(reader))
    loop.run()
    assert not stray
    os.write(new[1], b"x")
    loop.after(0.1, loop.stop)
    loop.run()
    assert stray
    for fd in {*new, *(fd for pipe in pipes for fd in pipe)}:
        os.close(fd)


def test_cancelled_timers_do_not_pile_up() -> None:
    """However many there were that nobody waits for; the others come due, in their order."""
    loop = guest.Loop()
    due: list[int] = []
    for n in range(300):
        loop.after(0.001 * (300 - n), lambda n=n: due.append(n))
    for _ in range(10_000):
        loop.after(60, loop.stop).cancel()
    assert len(loop._timers) < 1000
    loop.after(0.5, loop.stop)
    loop.run()
    assert due == list(range(300))[::-1]
