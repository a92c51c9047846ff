"""What a view left out, read from the store a page at a time, when somebody asks for it.

A view names the place (`telling`): a kind of text, the event and the character where it goes on. Not for the view
itself, which is folded from the stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import Field

from voidbox_lab.spec.base import Frozen
from voidbox_lab.spec.events import AgentLog, AgentText, Body, Event, Notice, ToolCall, ToolResult
from voidbox_lab.widgets.markdown import blocks
from voidbox_lab.widgets.telling import shown_entry
from voidbox_lab.widgets.text import clean
from voidbox_lab.widgets.transcript import Transcript, log_line, said

MAX_CHARACTERS = 16_384
MAX_ENTRIES = 20
MAX_READ = 50_000
"""Events that are looked at for one page; the next page goes on from there."""


class Asked(Frozen):
    """A request for a page."""

    stage: str = Field(max_length=64)
    of: Literal["entries", "text", "log", "tool", "notice", "warning"]
    id: str = Field("", max_length=200)
    """Of a text its block, of a tool its call."""
    seq: int = Field(ge=1)
    offset: int = Field(0, ge=0)
    until: int = Field(ge=1)
    """Number of the last event that belongs to it."""
    most: int = Field(MAX_CHARACTERS, ge=1)
    """Characters that are missing; what comes after them is in the view already."""


async def page(events: AsyncIterator[Event], asked: Asked, *, command: bool = False) -> dict[str, Any]:
    """The next page: ``entries``, or ``text`` with its ``blocks`` where it is an agent's; ``count`` of what was
    asked for; ``next`` with ``seq`` and ``offset``.

    Args:
        events: the run's, from number ``asked.seq`` on; closed in the end.
        command: the stage's text is a program's output, and no Markdown.
    """
    read = _entries if asked.of == "entries" else _text
    async with aclosing(_of(events, asked)) as ours:  # type: ignore[type-var]
        return await read(ours, asked, command)


async def _of(events: AsyncIterator[Event], asked: Asked) -> AsyncIterator[Event | int]:
    """Events of the stage; the number of the last one looked at, where that were too many."""
    looked = 0
    async with aclosing(events) as source:  # type: ignore[type-var]
        async for event in source:
            if event.seq > asked.until:
                return
            looked += 1
            if event.stage == asked.stage:
                yield event
            if looked >= MAX_READ:
                yield event.seq
                return


async def _entries(ours: AsyncIterator[Event | int], asked: Asked, command: bool) -> dict[str, Any]:
    transcript, following = Transcript(), asked.until + 1
    async for event in ours:
        if isinstance(event, int):
            following = event + 1
            break
        if isinstance(event.body, AgentText | ToolCall | ToolResult | AgentLog | Notice):
            grown = said(transcript, event.body, event, MAX_ENTRIES + 2)
            if len(grown.entries) > MAX_ENTRIES:
                following = event.seq
                break
            transcript = grown
    shown = [shown_entry(entry, command=command) for entry in transcript.entries]
    return {"entries": shown, "count": len(shown), "next": {"seq": following, "offset": 0}}


async def _text(ours: AsyncIterator[Event | int], asked: Asked, command: bool) -> dict[str, Any]:
    text, seq, offset = "", asked.until + 1, 0
    most = min(MAX_CHARACTERS, asked.most)
    async for event in ours:
        if isinstance(event, int):
            seq = event + 1
            break
        more = _said_in(event.body, asked)
        if more is None:
            continue
        start = asked.offset if event.seq == asked.seq else 0
        room = most - len(text)
        text += more[start : start + room]
        if len(more) - start > room:
            seq, offset = event.seq, start + room
            break
    found: dict[str, Any] = {"text": text, "count": len(text), "next": {"seq": seq, "offset": offset}}
    return found | {"blocks": [*blocks(text)]} if asked.of == "text" and not command else found


def _said_in(body: Body, asked: Asked) -> str | None:
    match body:
        case AgentText() if asked.of == "text" and str(body.block) == asked.id:
            return clean(body.text)
        case ToolResult() if asked.of == "tool" and body.id[:200] == asked.id:
            return clean(body.content)
        case AgentLog() if asked.of == "log":
            return log_line(body)
        case Notice() if asked.of in {"notice", "warning"}:
            return clean(body.message)
    return None
