"""How long a fetch may take, from its first question to its last byte."""

from __future__ import annotations

import time

from voidbox_lab.errors import LimitExceeded

TIMEOUT_S = 120.0


class Deadline:
    """The end of one fetch, which begins now."""

    def __init__(self, what: str) -> None:
        self._what, self._bound = what, TIMEOUT_S
        self._end = time.monotonic() + self._bound

    @property
    def left_s(self) -> float:
        """Seconds until then; not below nothing."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raises LimitExceeded once it is over."""
        if not self.left_s:
            raise LimitExceeded(
                f"{self._what} has not been fetched after {self._bound:.0f} s.",
                limit="time", value=self._bound, unit="s",
            )  # fmt: skip
