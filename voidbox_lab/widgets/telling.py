"""A transcript's entries as a view gets them: text as harmless HTML or as it is, and where the rest is read."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from voidbox_lab.observe.quantities import seconds
from voidbox_lab.widgets.markdown import blocks, verbatim
from voidbox_lab.widgets.transcript import Entry, Transcript
from voidbox_lab.widgets.view_state import StageView


def shown_entry(entry: Entry, *, command: bool = False) -> dict[str, Any]:
    """An entry. ``kind`` is ``text`` with ``blocks`` of HTML; or ``tool``, ``log``, ``notice``, ``warning`` with
    ``text``. Where its middle is missing there is a ``cut``; what comes after it, in ``tail_blocks`` or ``tail``.

    Args:
        command: what was said is a program's output, and no Markdown.
    """
    kind = "log" if command and entry.kind == "text" else entry.kind
    shown: dict[str, Any] = {"key": entry.key, "kind": kind, "cut": _cut(entry)}
    head, tail = entry.text.first, entry.text.last
    if shown["cut"] is None:
        head, tail = head + tail, ""
    if kind == "text":
        return shown | {"blocks": [*blocks(head)], "tail_blocks": [*blocks(tail)]}
    shown |= {"text": head, "tail": tail}
    if kind == "tool":
        status = "error" if entry.is_error else "done" if entry.done else "open"
        shown |= {
            "name": entry.name,
            "summary": entry.summary,
            "arguments": entry.arguments,
            "status": status,
            "took": seconds(entry.duration_s) if entry.duration_s is not None else "",
        }
    return shown


def entry_patch(old: Entry | None, new: Entry, *, command: bool = False) -> dict[str, Any]:
    """What turns `old` as it is shown into `new`: ``append`` to a log; other ``blocks`` from block ``from`` on."""
    shown = shown_entry(new, command=command)
    if old is None:
        return shown
    before = shown_entry(old, command=command)
    if shown["kind"] == "text":
        same = sum(
            1
            for _ in takewhile(lambda two: two[0] == two[1], zip(before["blocks"], shown["blocks"], strict=False))
        )
        return shown | {"from": same, "blocks": shown["blocks"][same:]}
    if shown["kind"] == "log" and shown["cut"] is None:
        return {"key": new.key, "kind": "log", "append": shown["text"][len(before["text"]) :]}
    if shown["kind"] == "log" and before["cut"] is not None:
        del shown["text"]  # what was kept first stays
    return shown


def _cut(entry: Entry) -> dict[str, Any] | None:
    """The characters that are missing, and where they begin in the store."""
    if not entry.text.dropped or entry.cut is None:
        return None
    return {
        "count": entry.text.dropped,
        "what": "characters",
        "at": {
            "of": entry.kind,
            "id": entry.tool_id if entry.kind == "tool" else str(entry.block),
            "seq": entry.cut.seq,
            "offset": entry.cut.offset,
            "until": entry.last_seq,
        },
    }


def gap(transcript: Transcript) -> dict[str, Any] | None:
    """The entries that are missing: keys ``from`` and ``to`` (exclusive), and where they begin in the store."""
    first, after = transcript.gap
    if first == after:
        return None
    until = next(e.seq for e in transcript.entries if e.key == after) - 1
    at = {"of": "entries", "id": "", "seq": transcript.first_dropped, "offset": 0, "until": until}
    return {"from": first, "to": after, "count": after - first, "what": "entries", "at": at}


def answer(stage: StageView) -> list[str] | None:
    """What a stage answered, as HTML; None if it did not."""
    if stage.output is None:
        return None
    if not stage.command:
        return [*blocks(stage.output.text)]
    return [verbatim(stage.output.text.strip("\n"))] if stage.output.text.strip() else []
