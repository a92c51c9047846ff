"""What a stage said and which tools it called, as a view keeps it. Folds events; bounded whatever they say: the
first and the last entries, of an entry the head and the tail of its text.

What is left out stays in the store, and places in it are kept as event numbers, for `pages` to read from there.
All text in it is clean (`text.clean`), none of it is escaped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from voidbox_lab.spec.events import AgentLog, AgentText, Event, Notice, ToolCall, ToolResult
from voidbox_lab.widgets.frozen import replaced
from voidbox_lab.widgets.text import Clip, clean, one_line
from voidbox_lab.widgets.tool_words import arguments, summary

MAX_ENTRIES = 40
"""Entries kept per stage; fewer when a run has many stages, so that a view stays small."""

EntryKind = Literal["text", "tool", "log", "notice", "warning"]


@dataclass(frozen=True)
class Place:
    """A place in what the store has: an event's number and how many characters of its clean text come before."""

    seq: int
    offset: int = 0


@dataclass(frozen=True)
class Entry:
    """One item. `key` counts from 0 within the stage and is never reused."""

    key: int
    kind: EntryKind
    seq: int = 0
    """Number of the event it begins with."""
    last_seq: int = 0
    """Number of the last event whose text it has."""
    cut: Place | None = None
    """Where its kept head ends, if it has more text than that."""
    text: Clip = field(default_factory=Clip)
    """What the agent said or logged; a tool's result."""
    block: int | None = None
    tool_id: str = ""
    name: str = ""
    summary: str = ""
    """A tool call's telling argument, on one line."""
    arguments: str = ""
    done: bool = True
    is_error: bool = False
    at: float = 0.0
    duration_s: float | None = None


@dataclass(frozen=True)
class Transcript:
    """The first and the last entries."""

    entries: tuple[Entry, ...] = ()
    next_key: int = 0
    dropped: int = 0
    """Entries left out between the first and the last ones."""
    first_dropped: int = 0
    """Number of the event that the first of these begins with."""

    @property
    def gap(self) -> tuple[int, int]:
        """First key left out, first key kept again; equal when nothing is missing."""
        if not self.dropped:
            return 0, 0
        after = next(i for i, entry in enumerate(self.entries) if entry.key != i)
        return after, self.entries[after].key


Said = AgentText | ToolCall | ToolResult | AgentLog | Notice


def said(transcript: Transcript, body: Said, event: Event, cap: int = MAX_ENTRIES) -> Transcript:
    """`transcript` after an event, with at most `cap` entries."""
    return _trim(_FOLDS[type(body)](transcript, body, event), cap)


def _text(transcript: Transcript, body: AgentText, event: Event) -> Transcript:
    last = transcript.entries[-1] if transcript.entries else None
    if last and last.kind == "text" and last.block == body.block:
        return _last(transcript, _more(last, clean(body.text), event.seq))
    if not body.text:
        return transcript
    return _append(transcript, event, clean(body.text), kind="text", block=body.block)


def _tool_call(transcript: Transcript, body: ToolCall, event: Event) -> Transcript:
    return _append(
        transcript,
        event,
        kind="tool",
        tool_id=body.id[:200],
        name=one_line(body.name, 80),
        summary=summary(body.input),
        arguments=arguments(body.input),
        done=False,
        text=Clip(2048, 1024),
    )


def _tool_result(transcript: Transcript, body: ToolResult, event: Event) -> Transcript:
    for entry in reversed(transcript.entries):
        if entry.kind == "tool" and not entry.done and entry.tool_id == body.id[:200]:
            took = max(0.0, event.at - entry.at)
            answered = _more(entry, clean(body.content), event.seq)
            done = replaced(answered, done=True, is_error=body.is_error, duration_s=took)
            return replaced(
                transcript, entries=tuple(done if e.key == done.key else e for e in transcript.entries)
            )
    return transcript  # its call is among the entries left out


def _log(transcript: Transcript, body: AgentLog, event: Event) -> Transcript:
    last = transcript.entries[-1] if transcript.entries else None
    line = log_line(body)
    if last and last.kind == "log":
        return _last(transcript, _more(last, line, event.seq))
    return _append(transcript, event, line, kind="log", text=Clip(1024, 1024))


def _notice(transcript: Transcript, body: Notice, event: Event) -> Transcript:
    kind = "warning" if body.level == "warning" else "notice"
    return _append(transcript, event, clean(body.message), kind=kind, text=Clip(600, 0))


_FOLDS: dict[type, Callable[[Transcript, Any, Event], Transcript]] = {
    AgentText: _text,
    ToolCall: _tool_call,
    ToolResult: _tool_result,
    AgentLog: _log,
    Notice: _notice,
}


def log_line(body: AgentLog) -> str:
    """A line of a log, clean, with its end."""
    return clean(body.text).rstrip("\n") + "\n"


def _more(entry: Entry, text: str, seq: int) -> Entry:
    room = entry.text.head - len(entry.text.first)
    cut = Place(seq, room) if entry.cut is None and len(text) > room else entry.cut
    return replaced(entry, text=entry.text.add(text), cut=cut, last_seq=seq)


def _append(transcript: Transcript, event: Event, said: str = "", **fields: Any) -> Transcript:
    entry = Entry(key=transcript.next_key, seq=event.seq, last_seq=event.seq, at=event.at, **fields)
    if said:
        entry = _more(entry, said, event.seq)
    return replaced(transcript, entries=(*transcript.entries, entry), next_key=transcript.next_key + 1)


def _last(transcript: Transcript, entry: Entry) -> Transcript:
    return replaced(transcript, entries=(*transcript.entries[:-1], entry))


def _trim(transcript: Transcript, cap: int) -> Transcript:
    """The first quarter and the last three quarters."""
    over = len(transcript.entries) - cap
    if over <= 0:
        return transcript
    head = cap // 4
    first = transcript.entries[head].seq
    return replaced(
        transcript,
        entries=transcript.entries[:head] + transcript.entries[head + over :],
        dropped=transcript.dropped + over,
        first_dropped=min(first, transcript.first_dropped) if transcript.dropped else first,
    )
