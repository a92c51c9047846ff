"""Bytes to lines, for any cutting of the stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.engine.lines import Lines


@given(st.lists(st.binary(max_size=20), max_size=20), st.integers(1, 30))
def test_any_cutting_gives_the_same_lines(chunks: list[bytes], size: int) -> None:
    data = b"".join(chunks)
    whole, pieces = Lines(limit=10), Lines(limit=10)
    expected = [*whole.feed(data), whole.rest()]
    got = [line for i in range(0, len(data), size) for line in pieces.feed(data[i : i + size])]
    assert [*got, pieces.rest()] == expected
    assert all(len(line) <= 10 for line in expected)
    assert [line[:10].removesuffix(b"\r") for line in data.split(b"\n")[:-1] if line] == expected[:-1]


def test_a_line_without_end_is_held_to_its_bound() -> None:
    lines = Lines(limit=100)
    for _ in range(1000):
        assert lines.feed(b"x" * 100) == []
    assert lines.feed(b"\nnext\n") == [b"x" * 100, b"next"]
