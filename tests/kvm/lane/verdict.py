"""Judges the outer VM by its serial line. Pure: lines in, a verdict out.

The lane passes on one thing only: the verdict line of the outer init, with this run's nonce, exit status 0 and a
pytest summary in which tests passed and nothing else happened. A skip is no pass: nothing may be missing there.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

_COUNT = re.compile(r"(\d+) ([a-z]+)")
_HARMLESS = {"passed", "warning", "warnings"}
_PANIC = re.compile(r"Kernel panic|BUG: soft lockup|end Kernel panic")


@dataclass(frozen=True)
class Verdict:
    """Whether the lane passed, how many tests did, and why in one line."""

    ok: bool
    passed: int
    reason: str


@dataclass
class Judge:
    """Fed the serial line line by line."""

    nonce: str
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    panicked: str | None = None
    _verdict: Verdict | None = None

    def feed(self, line: str) -> None:
        """Take one line, without its end."""
        self.tail.append(line)
        if self.panicked is None and _PANIC.search(line):
            self.panicked = line.strip()
        # Emulated serial ports are shared with the kernel's messages: the marker may follow some of those.
        marker = re.search(rf"lane-verdict {re.escape(self.nonce)} exit=(\S*) (.*)", line)
        if marker and self._verdict is None:
            self._verdict = _judge(marker[1], marker[2].strip().strip("= "))

    @property
    def done(self) -> bool:
        """The verdict line has come; whatever follows changes nothing."""
        return self._verdict is not None

    def verdict(self, ended: str) -> Verdict:
        """The verdict; `ended` says in a few words how the VM ended, for the case that it said nothing."""
        if self._verdict is not None:
            return self._verdict
        why = f" ({self.panicked})" if self.panicked else ""
        return Verdict(False, 0, f"the outer VM gave no verdict: {ended}{why}")


def _judge(status: str, summary: str) -> Verdict:
    counts = {word: int(number) for number, word in _COUNT.findall(summary.partition(" in ")[0])}
    passed = counts.get("passed", 0)
    ok = status == "0" and passed > 0 and not counts.keys() - _HARMLESS
    return Verdict(
        ok, passed, f"pytest in the outer VM ended with status {status or '?'}: {summary or 'no summary'}"
    )
