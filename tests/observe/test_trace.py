"""Spans seen in a notebook: as a frame, as a waterfall that is safe and bounded, and what follows from them."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from tests.observe.told import Told, agent, conversation
from voidbox_lab.observe.span_frames import (
    SPAN_COLUMNS,
    TOOL_COST_COLUMNS,
    samples_frame,
    spans_frame,
    tool_costs_frame,
)
from voidbox_lab.observe.spans import spans_of
from voidbox_lab.observe.trace import Trace
from voidbox_lab.observe.waterfall import MAX_ROWS, waterfall
from voidbox_lab.spec.events import Egress

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m'\"&"


class Tags(HTMLParser):
    """Every tag of a document, with its attributes; and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def trace(told: Told) -> Trace:
    return Trace("run-1", spans_of(told.record, told.events))


def test_a_frame_has_a_row_for_each_span() -> None:
    """Types hold for sums, whatever is missing; an unpriced call is not free."""
    frame = trace(conversation()).to_frame()
    assert tuple(frame.columns) == SPAN_COLUMNS
    assert len(frame) == 11
    assert frame["parent_id"].isna().sum() == 1
    chats = frame[frame["kind"] == "client"]
    assert chats["tokens"].sum() == 34
    assert chats["cost_usd"].sum() == pytest.approx(0.02)
    assert str(frame["start"].dt.tz) == "UTC"
    assert frame.loc[frame["name"] == "stage a", "seconds"].item() == 12.0
    told = conversation()
    told.events = told.events[:-3]
    told.call(10.5, cost_usd=None)
    frame = trace(told).to_frame()
    assert frame["cost_usd"].isna().sum() == 4, "the call, and all that it is within"
    assert frame["seconds"].isna().sum() == 3
    assert tuple(spans_frame([]).columns) == SPAN_COLUMNS


def test_costs_of_tool_calls() -> None:
    """Two tools share the call that asked for them, and the one that read their results."""
    costs = tool_costs_frame(trace(conversation()).spans)
    assert tuple(costs.columns) == TOOL_COST_COLUMNS
    assert list(costs["tool"]) == ["Bash", "mcp__clock__now"]
    assert list(costs["asked_usd"]) == [0.005, 0.005]
    assert list(costs["read_usd"]) == [0.005, 0.005]
    assert list(costs["asked_tokens"]) == [8.5, 8.5]


def test_costs_where_something_is_missing() -> None:
    """A failed call asks for nothing; a tool's result may be heard of after the call that read it has begun."""
    told = Told()
    told.until_running()
    told.tool(4.5, "before any model call")
    told.result(4.6, "before any model call")
    told.call(6.0, 1.0)
    told.tool(6.0, "t1")
    told.call(7.0, 0.5, status=529, cost_usd=None)
    told.call(9.0, 1.0, cost_usd=None)
    told.result(8.1, "t1")
    told.tool(9.1, "never read")
    costs = tool_costs_frame(trace(told).spans).set_index("call_id")
    assert costs["asked_usd"].isna().to_dict() == {"before any model call": True, "t1": False, "never read": True}
    assert costs.loc["t1", "asked_usd"] == 0.01
    assert costs.loc["t1", "read_tokens"] == 17, "of the next answered call, whose cost is not known"
    assert costs["read_usd"].isna().to_dict() == {"before any model call": False, "t1": True, "never read": True}
    assert len(tool_costs_frame([])) == 0


def test_samples_are_in_the_innermost_span() -> None:
    """Of their own stage; while nothing else goes on, in the phase."""
    told = Told(agent("a"), agent("b"))
    told.until_running()
    told.until_running(0.5, "b")
    told.tool(5.0, stage="a")
    for at in (2.0, 4.2, 5.5, 6.5, 99.0):
        told.sample(at)
    told.sample(5.5, "b")
    told.result(6.0, stage="a")
    told.stage(8.0, "succeeded", output="x")
    frame = samples_frame(trace(told).spans, told.events)
    assert list(frame["span"].fillna("none")) == [
        *("boot", "invoke_agent a", "execute_tool Bash", "invoke_agent a", "none"),
        "invoke_agent b",
    ]
    assert frame["span_id"].isna().sum() == 1
    assert frame["cpu"].iloc[0] == 0.5
    assert len(samples_frame([], [])) == 0


def test_the_waterfall_is_a_tree_in_time() -> None:
    """Bars lie within the whole, those of children after their parents' beginnings."""
    fall = waterfall(trace(conversation()).spans)
    assert [(row.depth, row.span.name) for row in fall.rows][:4] == [
        (0, "invoke_workflow demo"),
        (1, "stage a"),
        (2, "queue"),
        (2, "boot"),
    ]
    assert all(row.left >= 0 and row.left + row.width <= 100.01 for row in fall.rows)
    whole = fall.rows[0]
    assert (whole.left, whole.width, whole.took) == (0.0, 100.0, "12.5 s")
    assert whole.facts == "34 tokens · $0.0200"
    assert (fall.left_out, fall.whole) == (0, "12.5 s")


def test_the_waterfall_is_bounded() -> None:
    """The outer spans are shown before the inner ones, each below what it is within."""
    told = Told(*(agent(f"s{n}") for n in range(20)))
    for n in range(20):
        told.until_running(float(n), f"s{n}")
        for k in range(50):
            told.tool(5.0 + n + k / 100, f"t{k}", stage=f"s{n}")
            told.result(5.0 + n + k / 100, f"t{k}", stage=f"s{n}")
    it = trace(told)
    fall = waterfall(it.spans)
    assert len(fall.rows) == MAX_ROWS
    assert fall.left_out == len(it.spans) - MAX_ROWS
    assert sum(row.span.what == "stage" for row in fall.rows) == 20
    seen: set[str] = set()
    for row in fall.rows:
        assert row.span.parent_id is None or row.span.parent_id in seen
        seen.add(row.span.span_id)
    html = it._repr_html_()
    assert f"and {fall.left_out:,} more spans" in html
    assert len(html) < 200_000
    assert f"and {len(it.spans) - 60:,} more" in str(it)


def test_what_a_guest_says_is_text() -> None:
    """No tag, no attribute and no control code of a guest's making; no script, nothing fetched."""
    told = Told()
    told.until_running()
    told.tool(5.0, HOSTILE, HOSTILE)
    told.result(6.0, HOSTILE, error=True)
    told.tell(6.1, Egress(host=HOSTILE, port=1, verdict="denied", reason=HOSTILE))
    it = trace(told)
    page = Tags(it._repr_html_())
    assert {tag for tag, _ in page.tags} == {
        *("div", "style", "b", "span", "table", "thead", "tbody", "tr", "th", "td", "svg", "rect")
    }
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in {"href", "src"}}
    assert "<script>alert(1)</script>" in page.text
    for shown in (it._repr_html_(), str(it)):
        assert "\x1b" not in shown


def test_every_front_end_has_a_form() -> None:
    """Text where there is no HTML; an empty trace is one too."""
    it = trace(conversation())
    bundle = it._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert "    invoke_agent a" in bundle["text/plain"]
    assert "error: tool_error" in bundle["text/plain"]
    assert repr(it) == f"<Trace {it.trace_id} · run-1 · 11 spans>"
    nothing = Trace("run-1", [])
    assert "run-1" in nothing._repr_html_()
    assert str(nothing)
