"""Ids of traces and spans: the same for everybody, for ever."""

from __future__ import annotations

import re

from voidbox_lab.spec.tracing import span_id, trace_id, traceparent, work_span


def test_ids_are_what_they_have_always_been() -> None:
    """A collector keeps them: another release must not give other ones."""
    assert trace_id("run-1") == "8410d63278b48588a6bce48953b289f8"
    assert work_span("run-1", "a", 1) == span_id("run-1", "a", 1, "work") == "f09ce0585e0ee2c5"


def test_paths_are_kept_apart() -> None:
    """However their parts are cut."""
    ids = {
        span_id(*path) for path in (("r", "a", "bc"), ("r", "ab", "c"), ("r", "abc"), ("r", "1:a"), ("r", 1, "a"))
    }
    assert len(ids) == 5
    assert span_id("r", "\ud800")


def test_a_context_is_of_the_attempts_work() -> None:
    """As W3C Trace Context writes it: version, trace, span, sampled."""
    text = traceparent("run-1", "a", 2)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", text)
    assert text.split("-")[1:3] == [trace_id("run-1"), work_span("run-1", "a", 2)]
    assert traceparent("run-1", "a", 1) != text
