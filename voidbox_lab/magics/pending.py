"""What a waiting magic returns: something to await, which says so where nobody does."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn


class Pending:
    """Begins when it is awaited. Cells get their ``await`` from `transform.AwaitMagic`; a plain ``def``, and a
    cell that also holds ``%load_ext voidbox_lab``, do not."""

    def __init__(self, line: str, start: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._line, self._start = line, start

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._start().__await__()

    def __repr__(self) -> str:
        return (
            f"'%voidbox {self._line}' has not begun: await it, or put it into a cell of its own, "
            "after the one with '%load_ext voidbox_lab'."
        )

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self!r} (asked for {name!r})")
