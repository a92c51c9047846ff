"""Text from a guest, bounded: head and tail are kept. What makes it safe to show is `voidbox_lab.cards.text`."""

from __future__ import annotations

from dataclasses import dataclass

from voidbox_lab.cards.text import clean, one_line

__all__ = ["Clip", "clean", "one_line"]


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
