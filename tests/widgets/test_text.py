"""Guest text made safe and bounded."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.widgets.text import Clip, clean, one_line


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;a new title\x07text", "text"),
        ("\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0\x1b\\after", "after"),
        ("\x9b2Jgone", "gone"),
        ("50%\r100%\r\ndone", "50%\n100%\ndone"),
        ("bell\x07 nul\x00 back\x08", "bell nul back"),
        ("\u202egnp.exe", "gnp.exe"),
        ("half a sequence \x1b[3", "half a sequence "),
        ("tab\tand\nnewline ä 日本 🙂", "tab\tand\nnewline ä 日本 🙂"),
    ],
)
def test_control_sequences_leave_nothing_behind(raw: str, shown: str) -> None:
    """Colours, titles, links, overrides and bells go; text stays."""
    assert clean(raw) == shown


@given(st.text(st.characters(), max_size=300))
def test_nothing_a_terminal_obeys_survives(raw: str) -> None:
    """After cleaning, the only control characters are tab and newline, and cleaning again changes nothing."""
    shown = clean(raw)
    assert all(c in "\t\n" or unicodedata.category(c) not in {"Cc", "Cs"} for c in shown)
    assert clean(shown) == shown


@given(st.lists(st.text(max_size=50)), st.integers(0, 40), st.integers(0, 40))
def test_a_clip_keeps_head_and_tail_and_counts_the_rest(pieces: list[str], head: int, tail: int) -> None:
    """However the text arrives, the same is kept: the first `head` and the last `tail` characters."""
    clip = Clip(head, tail)
    for piece in pieces:
        clip = clip.add(piece)
    whole = "".join(pieces)
    assert clip.first == whole[:head]
    rest = whole[head:]
    assert clip.last == rest[max(0, len(rest) - tail) :]
    assert clip.dropped == len(whole) - len(clip)
    assert (clip.text == whole) == (clip.dropped == 0) or clip.dropped


@given(st.text(), st.integers(1, 80))
def test_one_line_is_one_line(text: str, width: int) -> None:
    """No newline, and never longer than asked."""
    line = one_line(text, width)
    assert "\n" not in line
    assert len(line) <= max(width, 2)
