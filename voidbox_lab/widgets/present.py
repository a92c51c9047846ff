"""A view state in words: JSON-able dictionaries of strings that every surface lays out as they are.

The widget's JavaScript, the static template and the plain lines say the same because they get
the same strings. Nothing here is escaped; `patch` is what the widget streams.
"""

from __future__ import annotations

import re
from typing import Any

from voidbox_lab.spec.run import BoxFacts, Trouble
from voidbox_lab.widgets.doings import presented
from voidbox_lab.widgets.quantities import cost, count, seconds, tokens
from voidbox_lab.widgets.view_state import Entry, StageView, ViewState

SPARK_WIDTH, SPARK_HEIGHT = 60, 14
"""The sparkline's view box, in SVG user units."""

ISOLATION_TITLES = {
    "kvm": "Hardware virtualization: the box runs on the CPU's virtualization extensions.",
    "tcg": "Emulated CPU: a kernel and memory of its own, but no hardware boundary; slower.",
}
SOURCE_TITLES = {
    "live": "Answers came from a real model.",
    "replay": "Answers came from a recording.",
    "scripted": "Answers came from a script, not from a model.",
}


def present(state: ViewState, now: float) -> dict[str, Any]:
    """The whole view. `now` is UNIX time, for elapsed times of what is still running."""
    end = state.finished_at or now
    stages = [_stage(s, now) for s in state.stages.values()]
    facts = []
    if len(stages) > 1:  # else the stage's own line says it all
        facts.append(count(len(stages), "stage"))
        if state.tokens.total:
            facts += [tokens(state.tokens), cost(state.cost_usd, {s.model_source for s in state.stages.values()})]
    return {
        "run": state.run,
        "state": state.state,
        "over": state.over,
        "now": now,
        "started": state.created_at,
        "elapsed": seconds(max(0.0, end - state.created_at)),
        "facts": facts,
        "trouble": _trouble(state.trouble, state),
        "notices": list(state.notices),
        "stages": stages,
    }


def _stage(stage: StageView, now: float) -> dict[str, Any]:
    return {**_head(stage, now), "entries": [_entry(e) for e in stage.entries], "gap": _gap(stage)}


def _head(stage: StageView, now: float) -> dict[str, Any]:
    """A stage without its transcript."""
    facts = [
        f
        for f in (
            stage.attempt > 1 and f"attempt {stage.attempt}",
            stage.queue,
            stage.turns and count(stage.turns, "turn"),
            stage.tool_calls and count(stage.tool_calls, "tool"),
        )
        if f
    ]
    if stage.tokens.total:
        facts += [tokens(stage.tokens), cost(stage.cost_usd, {stage.model_source})]
    elapsed = None
    if stage.started_at is not None:
        elapsed = seconds(max(0.0, (stage.finished_at or now) - stage.started_at))
    return {
        "name": stage.name,
        "state": stage.state,
        "over": stage.over,
        "folded": stage.inner and stage.state == "succeeded",
        "started": stage.started_at,
        "elapsed": elapsed,
        "badges": _badges(stage),
        "facts": facts,
        "cpu": spark(stage.cpu),
        "cpu_label": f"CPU {stage.cpu[-1]:.0%}" if stage.cpu else "",
        "memory": spark(stage.memory),
        "memory_label": f"{stage.memory_used_kb / 1024:.0f} MB" if stage.memory else "",
        "memory_title": f"Guest memory in use, of {stage.memory_total_kb / 1024:.0f} MB",
        "trouble": _message(stage.trouble),
        "answer": blocks(stage.output.text) if stage.output is not None else None,
        "doings": presented(stage.doings),
        "said": _said(stage),
    }


def _said(stage: StageView) -> int | None:
    """Key of the transcript's entry that is the answer, word for word: shown as the answer alone."""
    if stage.output is None or not stage.entries:
        return None
    last = stage.entries[-1]
    same = last.kind == "text" and last.text.text.strip() == stage.output.text.strip()
    return last.key if same else None


def _badges(stage: StageView) -> list[dict[str, str]]:
    badges = []
    if stage.cached is not None:
        title = f"An earlier result, of stage {stage.cached.stage} in {stage.cached.run}; nothing ran."
        badges.append({"kind": "cached", "text": "cached", "title": title})
    if stage.box is not None:
        badges.append(
            {"kind": stage.box.isolation, "text": stage.box.isolation.upper(), "title": box_title(stage.box)}
        )
    if stage.model:
        title = f"Model {stage.model}. " + SOURCE_TITLES.get(
            stage.model_source or "", "No call has been answered yet."
        )
        text = stage.model
        if stage.model_source and not text.startswith(stage.model_source):
            text += f" · {stage.model_source}"
        badges.append({"kind": stage.model_source or "model", "text": text, "title": title})
    if stage.doings.denied:
        title = "Things that the policy forbade; they did not happen, and the agent was told."
        badges.append({"kind": "denied", "text": f"{stage.doings.denied:,} denied", "title": title})
    return badges


def box_title(box: BoxFacts) -> str:
    """What a box really was, in one line."""
    return (
        f"{ISOLATION_TITLES[box.isolation]} {box.memory_mb} MB, {count(box.vcpus, 'vCPU')}, "
        f"{box.vsock}-space vsock, up in {seconds(box.boot_s)} ({box.start})."
    )


def _entry(entry: Entry) -> dict[str, Any]:
    shown: dict[str, Any] = {"key": entry.key, "kind": entry.kind, "text": entry.text.text}
    if entry.kind == "tool":
        status = "error" if entry.is_error else "done" if entry.done else "open"
        shown |= {
            "name": entry.name,
            "summary": entry.summary,
            "arguments": entry.arguments,
            "status": status,
            "took": seconds(entry.duration_s) if entry.duration_s is not None else "",
        }
    return shown


def _gap(stage: StageView) -> list[int]:
    """``[first key left out, first key kept again]``; equal when nothing is missing."""
    if not stage.dropped:
        return [0, 0]
    keys = [e.key for e in stage.entries]
    after = next(i for i, key in enumerate(keys) if key != i)
    return [after, keys[after]]


def _trouble(trouble: Trouble | None, state: ViewState) -> str | None:
    # A run's trouble says again, more vaguely, what its stages say; once is enough.
    return None if any(s.trouble for s in state.stages.values()) else _message(trouble)


def _message(trouble: Trouble | None) -> str | None:
    return trouble.message if trouble else None


def patch(old: ViewState, new: ViewState, now: float) -> dict[str, Any]:
    """What turns a view of `old` into one of `new`: stage heads, changed entries, appended text.

    Entries are compared by identity: the fold leaves untouched ones as they are.
    """
    whole = present(new, now)
    stages = []
    for name, stage in new.stages.items():
        before = old.stages.get(name)
        if before is stage:
            continue
        known = {e.key: e for e in before.entries} if before else {}
        changed = [_entry_patch(known.get(e.key), e) for e in stage.entries if known.get(e.key) is not e]
        head = _head(stage, now)
        if before is not None and before.output is stage.output:
            del head["answer"]  # up to 16 kB that would travel with every sample
        if before is not None and before.doings is stage.doings:
            del head["doings"]
        stages.append({**head, "entries": changed, "gap": _gap(stage)})
    return {**whole, "stages": stages}


def _entry_patch(old: Entry | None, new: Entry) -> dict[str, Any]:
    if old is not None and new.kind == "text" and not new.text.dropped:
        return {"key": new.key, "kind": "text", "append": new.text.text[len(old.text) :]}
    return _entry(new)


_FENCE = re.compile(r"^\s*(```|~~~)")
_ROW = re.compile(r"^\s*\|.*\|\s*$")
_RULE = re.compile(r"^\s*\|[\s:|-]+\|\s*$")
_SPAN = re.compile(r"\*\*([^*\n]{1,400})\*\*|`([^`\n]{1,400})`")
_NUMBER = re.compile(r"[-+\u2212$€]?[\d.,]+ ?[%\w]{0,3}")
MAX_COLUMNS = 24


def blocks(text: str) -> list[dict[str, Any]]:
    """`text` cut into ``prose``, ``code`` (fenced blocks) and ``table`` (pipe tables), in order.

    In prose, ``**bold**`` and code spans become ``spans`` of ``[kind, text]``; no other Markdown is read. A table
    has ``rows`` of cells, the first one its header, and ``align``, one per
    column; the others have ``text``.
    """
    found: list[tuple[str, list[str]]] = []
    fenced = False
    for line in text.strip("\n").split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
            found.append(("code" if fenced else "prose", []))
            continue
        kind = "code" if fenced else "table" if _ROW.match(line) else "prose"
        if not found or found[-1][0] != kind:
            found.append((kind, []))
        found[-1][1].append(line)
    return [_block(kind, lines) for kind, lines in found if any(line.strip() for line in lines)]


def _block(kind: str, lines: list[str]) -> dict[str, Any]:
    if kind == "table":
        if len(lines) > 2 and _RULE.match(lines[1]):
            rows = [_cells(line) for line in (lines[0], *lines[2:])]
            return {"kind": "table", "rows": rows, "align": _align(_cells(lines[1]), rows)}
        kind = "code"  # pipes, but not a table
    text = "\n".join(lines).strip("\n")
    return {"kind": "prose", "spans": _spans(text)} if kind == "prose" else {"kind": kind, "text": text}


def _spans(text: str) -> list[list[str]]:
    spans: list[list[str]] = []
    end = 0
    for match in _SPAN.finditer(text):
        spans += [["text", text[end : match.start()]], ["bold", match[1]] if match[1] else ["code", match[2]]]
        end = match.end()
    return [[kind, part] for kind, part in (*spans, ["text", text[end:]]) if part]


def _align(rule: list[str], rows: list[list[str]]) -> list[str]:
    """``left`` or ``right`` per column: as the rule says, else right where all body cells are numbers."""
    aligned = []
    for i in range(max(len(row) for row in rows)):
        marked = i < len(rule) and rule[i].endswith(":")
        cells = [row[i] for row in rows[1:] if i < len(row) and row[i]]
        aligned.append("right" if marked or (cells and all(map(_NUMBER.fullmatch, cells))) else "left")
    return aligned


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].split("|")][:MAX_COLUMNS]


def spark(values: tuple[float, ...]) -> str:
    """Points of an SVG polyline, newest at the right; values from 0 to 1. Empty below two samples."""
    if len(values) < 2:
        return ""
    step = SPARK_WIDTH / (len(values) - 1)
    top, span = 1.0, SPARK_HEIGHT - 2.0
    return " ".join(f"{i * step:.1f},{top + span * (1 - v):.1f}" for i, v in enumerate(values))
