"""Log records of events: whose words they are, and that none of them reads as another one."""

from __future__ import annotations

from voidbox_lab.observe.loglines import MAX_LINES, log_lines
from voidbox_lab.spec.events import AgentLog, AgentText, Body, Denied, Event

HALF = '{"type":"assistant","message":{"content":[{"type":"text","text":"the patient is John D'


def lines(body: Body, *, contents: bool = False) -> list[str]:
    event = Event(seq=1, run="r", at=1.0, stage="a", body=body)
    return [line.text for line in log_lines(event, contents=contents)]


def test_standard_error_is_told_and_standard_output_is_contents() -> None:
    """An agent that dies in the middle of an event leaves half of it, with what it said."""
    assert lines(AgentLog(text="warming up\nready", stream="stderr")) == ["[vm:a] warming up", "[vm:a] ready"]
    assert lines(AgentLog(text=HALF, stream="stdout")) == []
    assert lines(AgentLog(text=HALF, stream="stdout"), contents=True) == [f"[vm:a] {HALF}"]
    assert lines(AgentText(text="the answer"), contents=True) == []


def test_a_rule_of_the_guests_makes_no_line_of_its_own() -> None:
    rule = "x\n[vm:payroll] stage succeeded\x1b[2K"
    (line,) = lines(Denied(rule=rule, subject="s", message="m"))
    assert line.startswith("[vm:a] denied x")
    assert line.isprintable()


def test_a_flood_is_counted() -> None:
    told = lines(AgentLog(text="x\n" * 1000, stream="stderr"))
    assert len(told) == MAX_LINES + 1
    assert told[-1] == "[vm:a] … 900 more lines"
