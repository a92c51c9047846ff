"""What the policy denied a command, told to the host: at once the first time, and repetitions together.

A hostile program can be denied thousands of times a second. So what is kept and what is sent is bounded, and the
longer it goes on the seldomer it is told; the counts stay right.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .calls import Call
    from .loop import Loop, Timer

EVERY_S = 0.5
MAX_EVERY_S = 30.0
SLOWER_EVERY = 64
"""Events after which the interval doubles."""
MAX_KINDS = 16
"""Different denials in one interval; what is beyond is counted as one for each rule, and rules are few."""
MAX_TEXT = 500


class Denials:
    """The denials of one command."""

    __slots__ = ("_call", "_kinds", "_loop", "_sent", "_timer")

    def __init__(self, loop: Loop, call: Call) -> None:
        self._loop, self._call = loop, call
        self._kinds: dict[tuple[str, str, str], list[object]] = {}
        self._sent = 0
        self._timer: Timer | None = None

    def add(self, rule: str, subject: str, message: str, program: str = "", count: int = 1) -> None:
        """`rule` was hit `count` times by `program`, on `subject`."""
        key = (rule, subject[:MAX_TEXT], program[:64])
        if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
            key = (rule, "…", "")
            message = "The policy denied more than is listed one by one."
        entry = self._kinds.setdefault(key, [message[:MAX_TEXT], 0])
        entry[1] += count  # type: ignore[operator]
        if self._timer is None:
            self.flush()
            self._arm()

    def _arm(self) -> None:
        seconds = EVERY_S * 2 ** min(16, self._sent // SLOWER_EVERY)
        self._timer = self._loop.after(min(MAX_EVERY_S, seconds), self._due)

    def _due(self) -> None:
        self._timer = None
        if self._kinds:
            self.flush()
            self._arm()

    def flush(self) -> None:
        """Send what has come together, unless the host does not read: then it stays for later."""
        if self._kinds and self._call.room(0):
            self._send()

    def _send(self) -> None:
        for (rule, subject, program), (message, count) in self._kinds.items():
            self._call.event(
                {
                    "denied": {
                        "rule": rule,
                        "subject": subject,
                        "message": message,
                        "program": program,
                        "count": count,
                    }
                }
            )
        self._sent += len(self._kinds)
        self._kinds.clear()

    def close(self) -> None:
        """The command is over: what is left is sent however much the host has yet to read."""
        self._send()
        if self._timer is not None:
            self._timer.cancel()
