"""Spans as rows of a waterfall: which are shown, how far in, where their bars lie. Not for how it is drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from voidbox_lab.observe import conventions as c
from voidbox_lab.observe.quantities import count, dollars, seconds
from voidbox_lab.observe.span import Span

MAX_ROWS = 150
"""Most rows of a waterfall: the outermost spans, and of those the first."""
LEAST_WIDTH = 0.3
"""Percent: the shortest bar that can be seen."""


@dataclass(frozen=True)
class Row:
    """One line of a waterfall; its texts are plain, not escaped."""

    span: Span
    depth: int
    left: float
    """Where its bar begins, in percent of the whole time; so is `width`."""
    width: float
    took: str
    facts: str
    """Tokens and cost, where a model was asked."""
    trouble: str


@dataclass(frozen=True)
class Waterfall:
    """Rows, in the order of the tree, and how many spans they leave out."""

    rows: tuple[Row, ...]
    left_out: int
    whole: str
    """The time from the first beginning to the last end."""


def waterfall(spans: Sequence[Span], *, most: int = MAX_ROWS) -> Waterfall:
    """The waterfall of a run's spans, in order of their beginnings."""
    ids = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = defaultdict(list)
    for span in spans:
        children[span.parent_id if span.parent_id in ids else None].append(span)
    shown = _shown(children, most)
    begin = min((span.start for span in spans), default=0.0)
    # What goes on, goes on until the last thing that is known.
    end = max((span.end or span.start for span in spans), default=begin)
    scale = 100 / ((end - begin) or 1.0)
    rows: list[Row] = []
    waiting = [(span, 0) for span in reversed(children[None])]
    while waiting:
        span, depth = waiting.pop()
        if span.span_id not in shown:
            continue
        width = max(((span.end or end) - span.start) * scale, LEAST_WIDTH)
        left = min((span.start - begin) * scale, 100 - LEAST_WIDTH)
        rows.append(_row(span, depth, round(left, 2), round(min(width, 100 - left), 2)))
        waiting += [(child, depth + 1) for child in reversed(children[span.span_id])]
    return Waterfall(tuple(rows), len(spans) - len(rows), seconds(end - begin))


def _shown(children: dict[str | None, list[Span]], most: int) -> set[str]:
    """Level by level, so that no row lacks the one it is within."""
    shown: set[str] = set()
    level = children[None]
    while level and len(shown) < most:
        level = sorted(level, key=lambda span: span.start)[: most - len(shown)]
        shown |= {span.span_id for span in level}
        level = [child for span in level for child in children[span.span_id] if child.span_id not in shown]
    return shown


def _row(span: Span, depth: int, left: float, width: float) -> Row:
    facts = []
    if span.usage is not None:
        facts = [count(span.usage.tokens.total, "token"), dollars(span.usage.cost_usd)]
    kind = span.attributes.get(c.ERROR_TYPE)
    why = ": ".join(str(part) for part in (kind, span.message) if part)
    return Row(
        span=span,
        depth=depth,
        left=left,
        width=width,
        took="goes on" if span.seconds is None else seconds(span.seconds),
        facts=" · ".join(facts),
        trouble="" if span.status in {"ok", "open"} else f"{span.status}: {why}" if why else span.status,
    )
