"""What an agent said, as HTML that can do nothing: Markdown by markdown-it, in the kernel, for every view.

Agents are hostile. Raw HTML is text, images are their descriptions (nothing is fetched), links lead to http and
https alone and give the other side nothing to hold. Headings are bold paragraphs: the outline is the notebook's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from html import escape
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

MAX_NESTING = 40
"""Lists in lists, quotations in quotations; deeper ones are left out by markdown-it."""
MAX_MARKS = 500
"""Brackets, or pairs of tildes, in a text: each opens what is then looked for to the text's end."""
MAX_CELLS = 4000
"""Cells of tables: rows are filled up to the width of the first."""
MAX_URL = 2000
_NUMBER = re.compile(r"[-+\u2212$€]?[\d.,]+ ?[%\w]{0,3}")
_PARSED = 256
"""Texts whose HTML is kept: a flush asks again for what has not changed."""


@lru_cache(maxsize=_PARSED)
def blocks(text: str) -> tuple[str, ...]:
    """`text`, clean, as HTML elements, one for each of its top-level blocks: paragraphs, lists, tables, code.

    What would take long to read as Markdown, and so was not meant to be read, is shown as it was written.
    """
    if not _is_honest(text):
        return (verbatim(text),)
    parser = _parser()
    tokens = parser.parse(text, {})
    made, start = [], 0
    for end, token in enumerate(tokens, 1):
        if token.level == 0 and token.nesting <= 0:
            made.append(parser.renderer.render(tokens[start:end], parser.options, {}).strip("\n"))
            start = end
    return tuple(filter(None, made))


def verbatim(text: str) -> str:
    """`text` as one element that shows it as it is."""
    return f"<pre>{escape(text)}</pre>"


def _is_honest(text: str) -> bool:
    return max(text.count("["), text.count("~~")) <= MAX_MARKS and _cells(text) <= MAX_CELLS


def _cells(text: str) -> int:
    """As many table cells as `text` could make, about: a table ends with an empty line."""
    cells = 0
    for paragraph in text.split("\n\n") if text.count("|") > 1 else ():
        lines = paragraph.split("\n")
        cells += max(line.count("|") for line in lines) * len(lines)
    return cells


@cache
def _parser() -> MarkdownIt:
    # Line breaks are the agent's; "smart" quotes and bare links are nobody's wish.
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": MAX_NESTING})
    parser.enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline"])
    parser.validateLink = _is_web  # type: ignore[method-assign]
    parser.core.ruler.push("voidbox", _ours)
    parser.add_render_rule("image", _image)
    for name in ("link_open", "heading_open", "heading_close"):
        parser.add_render_rule(name, globals()[f"_{name}"])
    return parser


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.netloc) and len(url) <= MAX_URL


def _link_open(_: Any, tokens: Sequence[Token], i: int, *_more: Any) -> str:
    href = escape(str(tokens[i].attrs["href"]))
    # The address is the title: what is read and where it leads may be two things.
    return f'<a href="{href}" title="{href}" target="_blank" rel="noopener noreferrer nofollow">'


def _image(_: Any, tokens: Sequence[Token], i: int, *_more: Any) -> str:
    return f"[image: {escape(tokens[i].content)}]"


def _heading_open(*_: Any) -> str:
    return '<p class="vbx-h"><strong>'


def _heading_close(*_: Any) -> str:
    return "</strong></p>"


def _ours(state: StateCore) -> None:
    """Columns of numbers are set flush right, where the table does not say otherwise."""
    start = None
    for i, token in enumerate(state.tokens):
        if token.type == "table_open":
            start = i
        elif token.type == "table_close" and start is not None:
            _align(state.tokens[start:i])


def _align(table: Sequence[Token]) -> None:
    columns: list[list[tuple[Token, str]]] = []
    column = 0
    for i, token in enumerate(table):
        if token.type == "tr_open":
            column = 0
        elif token.type in {"th_open", "td_open"}:
            columns += [[]] if column == len(columns) else []
            columns[column].append((token, table[i + 1].content.strip()))
            column += 1
    for cells in columns:
        body = [text for token, text in cells if token.type == "td_open" and text]
        if body and all(map(_NUMBER.fullmatch, body)):
            for token, _ in cells:
                token.attrs.setdefault("style", "text-align:right")
