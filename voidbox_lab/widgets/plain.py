"""A run as plain lines, for terminals and logs: what changed from one view state to the next.

No colours and no cursor movement, so the lines read the same in a pipe. Not a terminal UI.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from voidbox_lab.observe.quantities import cost, count, seconds, tokens
from voidbox_lab.widgets.doings import Doings, network, presented, told
from voidbox_lab.widgets.text import one_line
from voidbox_lab.widgets.transcript import Entry
from voidbox_lab.widgets.view_state import StageView, ViewState

WIDTH = 100
"""Longest line for tool calls and notices, in characters; answers keep their own lines."""
MAX_TOLD = 20
"""Denials of a stage that get a line each; of more, their number is told at its end."""


def lines(old: ViewState | None, new: ViewState) -> Iterator[str]:
    """One line per change worth one: stage states, tool calls, warnings, answers, the end."""
    if old is None:
        names = ", ".join(new.stages)
        yield f"run {new.run}: {names}"
    for name, stage in new.stages.items():
        before = old.stages.get(name) if old else None
        if before is not stage:
            yield from _stage_lines(before, stage)
    known = len(old.notices) if old else 0
    if old is None or old.notices is not new.notices:
        yield from new.notices[known if len(new.notices) > known else -1 :]
    if new.over and not (old and old.over):
        yield _end(new)


def _stage_lines(old: StageView | None, new: StageView) -> Iterator[str]:
    before = {e.key: e for e in old.entries} if old else {}
    for entry in new.entries:
        line = _entry_line(before.get(entry.key), entry)
        if line:
            yield f"{new.name}  {line}"
    for line in _doing_lines(old.doings if old else Doings(), new.doings):
        yield f"{new.name}  {line}"
    if new.queue and new.queue != (old.queue if old else None):
        yield f"{new.name}  {new.queue}"
    if new.state != (old.state if old else "queued"):
        yield f"{new.name}  {new.state}{_about(new)}"
        if new.over:
            yield from (f"{new.name}  {line}" for line in _done_lines(new.doings))
        if new.state == "succeeded" and new.output is not None:
            yield textwrap.indent(new.output.text.strip("\n"), "    ")


def _entry_line(old: Entry | None, new: Entry) -> str | None:
    if new.kind == "tool":
        if old is None:
            return one_line(f"> {new.name} {new.summary}", WIDTH)
        if new.done and not old.done and new.is_error:
            return one_line(f"! {new.name} failed: {new.text.text}", WIDTH)
    elif old is None and new.kind in {"warning", "notice"}:
        return one_line(new.text.text, 2 * WIDTH)
    return None


def _doing_lines(old: Doings, new: Doings) -> Iterator[str]:
    """Denials as they happen, the first of a kind each; mounts."""
    if old is new:
        return
    for denial in new.denials:
        if old.next_key <= denial.key < MAX_TOLD:
            yield one_line(f"! denied by {told(denial)}", 2 * WIDTH)
    yield from new.mounts[max(0, len(new.mounts) - (new.mounted - old.mounted)) :]


def _done_lines(doings: Doings) -> Iterator[str]:
    """What it came to, at a stage's end."""
    if doings.next_key > MAX_TOLD:
        yield f"{doings.denied:,} denied by the policy, of which {MAX_TOLD} are shown"
    if doings.connections:
        yield network(doings)
    for group in presented(doings):
        if group["kind"] == "files":
            yield one_line(f"{group['summary']}: {', '.join(group['lines'])}", 4 * WIDTH)


def _about(stage: StageView) -> str:
    if stage.state == "provisioning" and stage.box is not None:
        box = stage.box
        return f": {box.isolation.upper()} box, {box.memory_mb} MB, up in {seconds(box.boot_s)}"
    if stage.state == "retrying" and stage.trouble:
        return f" after attempt {stage.attempt}: {stage.trouble.message}"
    if not stage.over:
        return ""
    facts = [f"cached from {stage.cached.run}"] if stage.cached else []
    if stage.started_at is not None and stage.finished_at is not None:
        facts.append(f"after {seconds(stage.finished_at - stage.started_at)}")
    if stage.turns:
        facts += [count(stage.turns, "turn"), tokens(stage.tokens), cost(stage.cost_usd, {stage.model_source})]
    said = f": {stage.trouble.message}" if stage.trouble else ""
    return (" " + ", ".join(facts) if facts else "") + said


def _end(state: ViewState) -> str:
    took = seconds(max(0.0, (state.finished_at or state.created_at) - state.created_at))
    isolation = sorted({s.box.isolation.upper() for s in state.stages.values() if s.box})
    sources = sorted({s.model_source for s in state.stages.values() if s.model_source})
    labels = [*isolation, *(f"{source} model" for source in sources)]
    return f"run {state.run}: {state.state} after {took}" + (f" ({', '.join(labels)})" if labels else "")


def summary(state: ViewState) -> str:
    """The whole state at once: what a text-only front end shows for a frozen view."""
    return "\n".join(lines(None, state))
