"""Text from a guest, made safe to show and bounded: control codes out, head and tail kept.

Not for escaping: HTML is escaped by the template engine and by `textContent`, never by hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# ECMA-48: CSI (ESC [ … final byte), OSC/DCS/PM/APC/SOS strings up to BEL or ST, then two-byte escapes.
# String bodies are bounded by their terminator or by the end of the text, so a cut sequence goes as a whole.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# What remains of C0 and C1 except tab and newline; bidirectional overrides and isolates (Unicode TR9),
# which could make a command read other than it is; lone surrogates, which no UTF-8 output can carry.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` without terminal control sequences; ``\\r\\n`` and lone ``\\r`` become newlines."""
    text = _ESCAPES.sub("", text)
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str, width: int) -> str:
    """`text` cleaned, on one line, cut to `width` characters with an ellipsis."""
    flat = " ".join(clean(text[: 8 * width]).split())
    return flat if len(flat) <= width else flat[: max(1, width - 1)] + "…"


@dataclass(frozen=True)
class Clip:
    """Text of which the first `head` and the last `tail` characters are kept.

    `first` fills before anything goes to `last`; `dropped` counts the characters lost between them.
    """

    head: int = 3072
    tail: int = 1024
    first: str = ""
    last: str = ""
    dropped: int = 0

    def add(self, text: str) -> Clip:
        """With `text`, already clean, appended."""
        if not text:
            return self
        room = self.head - len(self.first)
        first, last = self.first, self.last
        if room > 0:
            first, text = first + text[:room], text[room:]
        last += text
        cut = max(0, len(last) - self.tail)
        return Clip(self.head, self.tail, first, last[cut:], self.dropped + cut)

    def __len__(self) -> int:
        return len(self.first) + len(self.last)

    @property
    def text(self) -> str:
        """What was kept, with a mark where something is missing."""
        if not self.dropped:
            return self.first + self.last
        return f"{self.first}\n… {self.dropped:,} characters not shown …\n{self.last}"

    @classmethod
    def of(cls, text: str, *, head: int = 3072, tail: int = 1024) -> Clip:
        """A clip of `text`, cleaned; only as much as may be kept is looked at closely."""
        return cls(head, tail).add(clean(text))
