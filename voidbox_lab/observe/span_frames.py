"""Spans as pandas frames, and what can be told by putting them together: costs of tool calls, samples in spans."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from voidbox_lab.observe import conventions as c
from voidbox_lab.observe.frames import telemetry_frame
from voidbox_lab.observe.span import Span, Usage
from voidbox_lab.spec.events import Event

if TYPE_CHECKING:
    import pandas as pd

SPAN_COLUMNS = (
    *("trace_id", "span_id", "parent_id", "name", "kind", "start", "seconds", "status", "tokens", "cost_usd"),
    "attributes",
)
"""Columns of `spans_frame`. `start` is UTC; `seconds` is NaN while it goes on. `status` is ``ok``, ``error``,
``cancelled`` or ``open``. `tokens` and `cost_usd` are of a model call, or of all calls within; 0 where there was
none; `cost_usd` is NaN where a call is unpriced."""
TOOL_COST_COLUMNS = (
    *("stage", "attempt", "tool", "call_id", "start", "seconds", "status"),
    *("asked_tokens", "asked_usd", "read_tokens", "read_usd"),
)
"""Columns of `tool_costs_frame`."""


def spans_frame(spans: Iterable[Span]) -> pd.DataFrame:
    """One row for each span, by their beginnings; columns `SPAN_COLUMNS`."""
    import pandas as pd

    rows = []
    for span in spans:
        usage = span.usage or Usage()
        times = (_time(span.start), span.seconds, span.status)
        spent = (usage.tokens.total, usage.cost_usd)
        ids = (span.trace_id, span.span_id, span.parent_id)
        rows.append((*ids, span.name, span.kind, *times, *spent, dict(span.attributes)))
    frame = pd.DataFrame(rows, columns=list(SPAN_COLUMNS))
    return frame.astype({"seconds": "float64", "cost_usd": "float64"})


def tool_costs_frame(spans: Iterable[Span]) -> pd.DataFrame:
    """One row for each tool call, with its shares of the model calls around it; columns `TOOL_COST_COLUMNS`.

    The model call that *asked* for a tool is the last answered one of the same attempt that had begun before the
    tool was called; the one that *read* the result is the next answered one. Tools that one model call asked for
    share its cost, and that of the one that read their results, equally. NaN: there was no such call, or it is
    unpriced. A model call in the middle of a conversation reads some results and asks for other tools: each column
    sums to at most what the stage cost, both together do not.
    """
    import pandas as pd

    models: dict[Any, list[Span]] = defaultdict(list)
    tools: list[Span] = []
    for span in spans:
        if span.what == "model" and span.status == "ok":
            models[span.stage, span.attempt].append(span)
        elif span.what == "tool":
            tools.append(span)
    for calls in models.values():
        calls.sort(key=lambda span: span.start)
    begun = {key: [span.start for span in calls] for key, calls in models.items()}
    asked = [bisect_right(begun.get((tool.stage, tool.attempt), []), tool.start) - 1 for tool in tools]
    sharing = Counter((tool.stage, tool.attempt, at) for tool, at in zip(tools, asked, strict=True))
    rows = []
    for tool, at in zip(tools, asked, strict=True):
        calls, n = models.get((tool.stage, tool.attempt), []), sharing[tool.stage, tool.attempt, at]
        asker = calls[at] if at >= 0 else None
        reader = calls[at + 1] if at + 1 < len(calls) else None
        about = (tool.stage, tool.attempt, tool.attributes[c.TOOL_NAME], tool.attributes[c.TOOL_CALL_ID])
        times = (_time(tool.start), tool.seconds, tool.status)
        rows.append((*about, *times, *_share(asker, n), *_share(reader, n)))
    frame = pd.DataFrame(rows, columns=list(TOOL_COST_COLUMNS))
    return frame.astype(dict.fromkeys(TOOL_COST_COLUMNS[-4:], "float64") | {"seconds": "float64"})


def samples_frame(spans: Sequence[Span], events: Iterable[Event]) -> pd.DataFrame:
    """`frames.telemetry_frame`, and for each sample the span it was taken in: of those of its stage that went on
    then, the one that had begun last. Columns ``span_id`` and ``span``, its name."""
    frame = telemetry_frame(events)
    found: list[Span | None] = [None] * len(frame)
    places: dict[str, list[int]] = defaultdict(list)
    for place, stage in enumerate(frame["stage"]):
        places[stage].append(place)
    seconds = [at.timestamp() for at in frame.index]
    of_stage: dict[str | None, list[Span]] = defaultdict(list)
    for span in spans:
        of_stage[span.stage].append(span)
    for stage, where in places.items():
        where.sort(key=seconds.__getitem__)
        _sweep(sorted(of_stage[stage], key=lambda span: span.start), where, seconds, found)
    frame["span_id"] = [span and span.span_id for span in found]
    frame["span"] = [span and span.name for span in found]
    return frame


def _sweep(spans: list[Span], where: list[int], seconds: list[float], found: list[Span | None]) -> None:
    """Put the innermost span at each of `where` into `found`; both are in order of time."""
    going_on: list[Span] = []
    coming = 0
    for place in where:
        now = seconds[place]
        while coming < len(spans) and spans[coming].start <= now:
            going_on.append(spans[coming])
            coming += 1
        going_on = [span for span in going_on if span.end is None or span.end >= now]
        found[place] = going_on[-1] if going_on else None


def _share(call: Span | None, n: int) -> tuple[float | None, float | None]:
    if call is None or call.usage is None:
        return None, None
    cost = call.usage.cost_usd
    return call.usage.tokens.total / n, None if cost is None else cost / n


def _time(at: float) -> Any:
    import pandas as pd

    return pd.Timestamp(at, unit="s", tz="UTC")
