"""Frames: what one side encodes the other decodes, however it was cut; everything else is a WireError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.wire import frames as f

SHAPES = f._SHAPE


@st.composite
def any_frame(draw: st.DrawFn) -> f.Frame:
    """A frame that may be sent, of every kind, with short and with longest payloads."""
    kind = draw(st.sampled_from(sorted(SHAPES)))
    low, high, flags, connection = SHAPES[kind]
    length = draw(st.one_of(st.just(high), st.integers(low, min(high, 300))))
    stream = 0 if connection else draw(st.integers(1, 2**32 - 1))
    return f.Frame(
        kind, draw(st.integers(0, flags)), stream, draw(st.binary(min_size=8, max_size=8)).ljust(length, b".")
    )


def cut(frame: f.Frame) -> f.Frame:
    """`frame` with its payload within its kind's bounds."""
    return f.Frame(frame.kind, frame.flags, frame.stream, frame.payload[: SHAPES[frame.kind][1]])


@given(st.lists(any_frame().map(cut), max_size=4), st.data())
def test_any_cut_decodes_the_same(frames: list[f.Frame], data: st.DataObject) -> None:
    """Where the bytes are cut makes no difference."""
    frames = [x for x in frames if len(x.payload) >= SHAPES[x.kind][0]]
    stream = b"".join(f.encode(x.kind, x.stream, x.payload, x.flags) for x in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder, got = f.Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == frames
    assert decoder.pending == 0


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_any_bytes_end_in_a_wire_error_or_in_frames(chunks: list[bytes]) -> None:
    """No byte stream raises anything else, and once it failed it stays failed."""
    decoder, failed = f.Decoder(), False
    for chunk in chunks:
        try:
            decoder.feed(chunk)
            assert not failed, "a dead decoder came back to life"
        except f.WireError:
            failed = True


@given(st.integers(0, 3), st.integers(0, 30), st.integers(0, 70), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_any_header_is_judged_before_its_payload(
    version: int, kind: int, flags: int, stream: int, length: int
) -> None:
    """A hostile length is refused on twelve bytes; an accepted one is within its kind's bounds."""
    try:
        assert f.Decoder().feed(f.HEADER.pack(version, kind, flags, stream, length)) == [] or length == 0
    except f.WireError:
        return
    low, high, most, connection = SHAPES[kind]
    assert version == f.VERSION
    assert low <= length <= high <= f.MAX_JSON
    assert flags <= most
    assert (stream == 0) is connection


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ((2, f.DATA, 0, 1, 1), "bad-version"),
        ((1, 99, 0, 1, 1), "bad-kind"),
        ((1, f.DATA, 0, 1, f.MAX_DATA + 1), "bad-length"),
        ((1, f.DATA, 0, 1, 0), "bad-length"),
        ((1, f.REPLY, 0, 1, 2**32 - 1), "bad-length"),
        ((1, f.DATA, 3, 1, 1), "bad-flags"),
        ((1, f.DATA, 0, 0, 1), "bad-stream"),
        ((1, f.HELLO, 0, 1, 34), "bad-stream"),
    ],
)
def test_each_fault_has_its_code(header: tuple[int, ...], code: str) -> None:
    """Codes are stable: they end up in logs and in BoxLost."""
    with pytest.raises(f.WireError) as caught:
        f.Decoder().feed(f.HEADER.pack(*header))
    assert caught.value.code == code


def test_encode_refuses_what_decode_would() -> None:
    """The bounds bind the sender too."""
    with pytest.raises(f.WireError):
        f.encode(f.DATA, 1, b"")
    with pytest.raises(f.WireError):
        f.encode(f.DATA, 1, bytes(f.MAX_DATA + 1))


def test_one_byte_at_a_time_is_not_quadratic() -> None:
    """A peer that dribbles the longest frame costs time in proportion to its bytes."""
    frame = f.encode(f.REPLY, 1, b"x" * f.MAX_JSON)
    decoder, got = f.Decoder(), []
    for i in range(len(frame)):
        got += decoder.feed(frame[i : i + 1])
    assert len(got) == 1
