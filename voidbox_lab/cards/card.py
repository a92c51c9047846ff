"""A value's facts, and what they look like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from voidbox_lab.cards import graph
from voidbox_lab.cards.states import glyph
from voidbox_lab.cards.text import bounded, one_line

CSS = (Path(__file__).parent / "static" / "card.css").read_text(encoding="utf-8")
MAX_VALUE = 600
"""Characters of a fact."""
MAX_TEXT = 6000
"""Characters of a text that is folded away."""
MAX_ROWS = 20


@dataclass(frozen=True)
class Table:
    """Cells of text under their heads; columns named in `numbers` are flush right."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Card:
    """What is said of a value. Texts may be anybody's: they are cleaned, bounded and escaped here."""

    kind: str
    name: str
    badges: tuple[tuple[str, str], ...] = ()
    """Kind, for its colour, and text."""
    facts: tuple[tuple[str, str], ...] = ()
    """Name and value; without a value it is left out."""
    state: str | None = None
    nodes: tuple[graph.Node, ...] = ()
    table: Table | None = None
    trouble: str = ""
    texts: tuple[tuple[str, str], ...] = ()
    """Heading and text, folded."""

    def bundle(self) -> dict[str, str]:
        """By MIME type."""
        return {"text/plain": self.plain(), "text/html": self.html()}

    def plain(self) -> str:
        """As lines, without what a terminal would obey."""
        drawing = graph.draw(self.nodes)
        head = [self.kind, self.name, *([self.state] if self.state else []), *(text for _, text in self.badges)]
        facts = [(name, one_line(value, MAX_VALUE)) for name, value in self.facts if value]
        facts += [("stages", graph.in_words(drawing))] if drawing is not None else []
        width = max((len(name) for name, _ in facts), default=0)
        lines = [one_line(" · ".join(head[1:]), 400)]
        lines[0] = f"{self.kind} {lines[0]}"
        lines += [f"  {name:{width}}  {value}" for name, value in facts]
        lines += _plain_table(self.table) if self.table is not None else []
        lines += [one_line(self.trouble, MAX_VALUE)] if self.trouble else []
        return "\n".join(lines)

    def html(self) -> str:
        """As one element, with its style."""
        shape = f'<span class="vbx-glyph" aria-hidden="true">{glyph(self.state)}</span>' if self.state else ""
        badges = "".join(
            f' <span class="vbx-badge" data-kind="{escape(kind)}">{_line(text)}</span>'
            for kind, text in self.badges
        )
        state = f' <span class="vbx-state">{_line(self.state)}</span>' if self.state else ""
        drawing = graph.draw(self.nodes)
        parts = [
            f'<div class="vbx-bar">{shape}<span class="vbx-kind">{escape(self.kind)}</span> '
            f"<b>{_line(self.name)}</b>{state}{badges}</div>",
            graph.html(drawing) if drawing is not None else "",
            _facts(self.facts),
            _table(self.table) if self.table is not None else "",
            f'<div class="vbx-trouble">{_line(self.trouble)}</div>' if self.trouble else "",
            *(
                f'<details class="vbx-more"><summary>{escape(name)}</summary><pre>'
                f"{escape(bounded(text, MAX_TEXT))}</pre></details>"
                for name, text in self.texts
                if text
            ),
        ]
        said = escape(self.state or "")
        return f'<div class="vbx vbx-card" data-vbx="{said}"><style>{style()}</style>\n' + "\n".join(
            [*filter(None, parts), "</div>"]
        )


class Shown:
    """Base of values that show themselves."""

    def _card(self) -> Card:
        raise NotImplementedError

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """IPython's way to ask; see IPython.core.formatters."""
        return self._card().bundle()


@cache
def style() -> str:
    """The design, without comments and line breaks: it is saved with every output."""
    return squeezed(CSS)


def squeezed(css: str) -> str:
    """A style sheet without comments and line breaks."""
    return re.sub(r"\s+", " ", re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)).strip()


def _line(text: str) -> str:
    return escape(one_line(text, MAX_VALUE))


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(bounded(value, MAX_VALUE))}</td></tr>'
        for name, value in facts
        if value
    )
    return f'<table class="vbx-list">\n{rows}\n</table>' if rows else ""


def _table(table: Table) -> str:
    right = [' class="vbx-number"' if name in table.numbers else "" for name in table.columns]
    head = "".join(f'<th scope="col"{r}>{escape(name)}</th>' for name, r in zip(table.columns, right, strict=True))
    rows = "\n".join(
        "<tr>" + "".join(f"<td{r}>{_line(cell)}</td>" for cell, r in zip(row, right, strict=True)) + "</tr>"
        for row in table.rows[:MAX_ROWS]
    )
    more = len(table.rows) - MAX_ROWS
    rest = f'\n<div class="vbx-note">… and {more:,} more</div>' if more > 0 else ""
    return f'<table class="vbx-table">\n<tr>{head}</tr>\n{rows}\n</table>{rest}'


def _plain_table(table: Table) -> list[str]:
    rows = [list(table.columns), *([one_line(cell, 60) for cell in row] for row in table.rows[:MAX_ROWS])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    right = [name in table.numbers for name in table.columns]
    lines = [
        "  "
        + "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]
    more = len(table.rows) - MAX_ROWS
    return lines + ([f"  … and {more:,} more"] if more > 0 else [])
