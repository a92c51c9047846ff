"""A run's spans as an object that shows itself: as a waterfall in a notebook, as a tree in text. No scripts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from voidbox_lab.observe.span import Span
from voidbox_lab.observe.waterfall import waterfall

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Template

TEXT_ROWS = 60
TEXT_WIDTH = 64


class Trace:
    """The spans of one run."""

    def __init__(self, run: str, spans: Sequence[Span]) -> None:
        self.run = run
        self.spans = tuple(spans)
        """By their beginnings, outer ones first."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits: the same that an OTLP collector has it by."""
        return self.spans[0].trace_id if self.spans else ""

    def to_frame(self) -> pd.DataFrame:
        """One row for each span; see `voidbox_lab.observe.span_frames.spans_frame`."""
        from voidbox_lab.observe.span_frames import spans_frame

        return spans_frame(self.spans)

    def _repr_html_(self) -> str:
        return _template().render(trace=self, fall=waterfall(self.spans))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self._repr_html_()}

    def __str__(self) -> str:
        fall = waterfall(self.spans, most=TEXT_ROWS)
        lines = [f"trace {self.trace_id} of {self.run}, {fall.whole}"]
        for row in fall.rows:
            name = "  " * row.depth + row.span.name
            facts = " · ".join(filter(None, (row.took, row.facts, row.trouble)))
            lines.append(f"{name[:TEXT_WIDTH]:<{TEXT_WIDTH}}  {facts}".rstrip())
        if fall.left_out:
            lines.append(f"… and {fall.left_out:,} more; .to_frame() has all")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Trace {self.trace_id} · {self.run} · {len(self.spans):,} spans>"


@cache
def _template() -> Template:
    from jinja2 import (  # 0.1 s that importing the package should not cost
        Environment,
        PackageLoader,
        StrictUndefined,
    )

    environment = Environment(
        loader=PackageLoader("voidbox_lab.observe"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("trace.html.j2")
