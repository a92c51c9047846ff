"""A view state in words and harmless HTML: JSON-able dictionaries that every surface lays out as they are.

The widget's JavaScript, the static template and the plain lines say the same because they get the same. Strings
are not escaped, but for those under the keys ``answer``, ``blocks``, ``tail_blocks``, ``meters``, ``vitals`` and
``graph``: these are HTML of our making (`markdown`, `parts`, `voidbox_lab.cards.graph`). `patch` is what the
widget streams.
"""

from __future__ import annotations

from typing import Any

from voidbox_lab.cards import Node, graph
from voidbox_lab.cards.states import glyph
from voidbox_lab.observe.quantities import cost, count, seconds, size, tokens
from voidbox_lab.spec.run import BoxFacts, Trouble
from voidbox_lab.widgets import parts
from voidbox_lab.widgets.doings import presented
from voidbox_lab.widgets.gauges import gauges, spark, summary
from voidbox_lab.widgets.telling import answer, entry_patch, gap, shown_entry
from voidbox_lab.widgets.view_state import StageView, ViewState

ISOLATION_TITLES = {
    "kvm": "Hardware virtualization: the box runs on the CPU's virtualization extensions.",
    "tcg": "Emulated CPU: a kernel and memory of its own, but no hardware boundary; slower.",
}
SOURCE_TITLES = {
    "live": "Answers came from a real model.",
    "replay": "Answers came from a recording.",
    "scripted": "Answers came from a script, not from a model.",
}
SOURCES = {"replay": "recorded"}
"""What a source is called, where that is not its own name."""
PAUSE = {"name": "pause", "text": "Pause", "title": "Start nothing more; what is at work goes on"}
RESUME = {"name": "resume", "text": "Resume", "title": "Let the run go on"}
CANCEL = {"name": "cancel", "text": "Cancel", "title": "End the run and its boxes"}
AGAIN = {
    "failed": "%voidbox retry {run} runs it again; what had succeeded is taken from the cache.",
    "cancelled": "%voidbox retry {run} runs it again; what had succeeded is taken from the cache.",
    "interrupted": "%voidbox resume {run} lets it go on.",
}


def present(state: ViewState, now: float) -> dict[str, Any]:
    """The whole view. `now` is UNIX time, for elapsed times of what is still running."""
    drawing = _graph(state)
    return {
        **_run(state, now),
        "graph": graph.html(drawing, tag="button") if drawing is not None else None,
        "stages": [_stage(s, now) for s in state.stages.values()],
    }


def _run(state: ViewState, now: float) -> dict[str, Any]:
    """A run without its stages."""
    elapsed = max(0.0, (state.finished_at or now) - state.created_at)
    used, usd = state.tokens, state.cost_usd
    many = len(state.stages) > 1  # else the stage's own line says it all
    facts = [count(len(state.stages) + state.more_stages, "stage")] if many else []
    if many and used.total:
        if state.budget.tokens is None:
            facts.append(tokens(used))
        if state.budget.usd is None:
            facts.append(cost(usd, {s.model_source for s in state.stages.values()}))
    notices = list(state.notices)
    if state.more_stages:
        notices.append(f"{count(state.more_stages, 'further stage')} of this run: 'voidbox show' lists all.")
    return {
        "run": state.run,
        "state": state.state,
        "glyph": glyph(state.state),
        "over": state.over,
        "now": now,
        "started": state.created_at,
        "elapsed": seconds(elapsed),
        "facts": facts,
        "meters": parts.meters(gauges(state.budget, used.total, usd, elapsed)),
        "actions": [] if state.over else [RESUME if state.state == "paused" else PAUSE, CANCEL],
        "again": AGAIN.get(state.state, "").format(run=state.run),
        "trouble": _trouble(state.trouble, state),
        "notices": notices,
        "groups": _groups(state),
    }


def _graph(state: ViewState) -> graph.Drawing | None:
    return graph.draw([Node(s.name, s.needs) for s in state.stages.values()])


def _groups(state: ViewState) -> list[dict[str, str]]:
    """Nodes of the drawing that stand for several stages, as those are."""
    groups = []
    drawing = _graph(state)
    for node in drawing.nodes if drawing is not None else ():
        if node.members:
            states = [state.stages[name].state for name in node.members]
            first = next((s for s in ("failed", "running", "retrying") if s in states), states[-1])
            note = graph.counted(states)
            groups.append({"name": node.name, "state": first, "glyph": glyph(first), "note": note})
    return groups


def drawn(state: ViewState, anchor: str) -> str | None:
    """The stages as they are, for a view that does not change: each leads to the element `anchor` and its name."""
    nodes = [Node(s.name, s.needs, s.state, _note(s)) for s in state.stages.values()]
    drawing = graph.draw(nodes)
    return graph.html(drawing, tag="a", anchor=anchor) if drawing is not None else None


def _stage(stage: StageView, now: float) -> dict[str, Any]:
    entries = [shown_entry(e, command=stage.command) for e in stage.entries]
    return {**_head(stage, now), "entries": entries, "gap": gap(stage.transcript)}


def _head(stage: StageView, now: float) -> dict[str, Any]:
    """A stage without its transcript."""
    facts = [
        f
        for f in (
            stage.attempt > 1 and f"attempt {stage.attempt}",
            stage.turns and count(stage.turns, "turn"),
            stage.tool_calls and count(stage.tool_calls, "tool"),
        )
        if f
    ]
    if stage.tokens.total:
        if stage.budget.tokens is None:
            facts.append(tokens(stage.tokens))
        if stage.budget.usd is None:
            facts.append(cost(stage.cost_usd, {stage.model_source}))
    elapsed = max(0.0, (stage.finished_at or now) - stage.started_at) if stage.started_at is not None else None
    vitals = stage.vitals
    return {
        "name": stage.name,
        "state": stage.state,
        "glyph": glyph(stage.state),
        "note": _note(stage),
        "over": stage.over,
        "folded": stage.inner and stage.state == "succeeded",
        "started": stage.started_at,
        "elapsed": None if elapsed is None else seconds(elapsed),
        "badges": _badges(stage),
        "facts": facts,
        "queue": stage.queue,
        "meters": parts.meters(gauges(stage.budget, stage.tokens.total, stage.cost_usd, elapsed or 0.0)),
        "cpu": spark(vitals.cpu),
        "cpu_label": f"CPU {vitals.cpu[-1]:.0%}" if vitals.cpu else "",
        "memory": spark(vitals.memory),
        "memory_label": size(vitals.memory_used_kb * 1024) if vitals.memory else "",
        "memory_title": f"Guest memory in use, of {size(vitals.memory_total_kb * 1024)}",
        "telemetry": summary(vitals),
        "vitals": parts.vitals_table(vitals) if vitals.cpu else "",
        "trouble": _message(stage.trouble),
        "answer": answer(stage),
        "doings": presented(stage.doings),
        "said": _said(stage),
    }


def _note(stage: StageView) -> str:
    """What stands below a stage's name in the drawing."""
    if stage.cached is not None:
        return f"{stage.state}, cached"
    return "waits for room" if stage.queue else stage.state


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
            text += f" · {SOURCES.get(stage.model_source, stage.model_source)}"
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


def _trouble(trouble: Trouble | None, state: ViewState) -> str | None:
    # A run's trouble says again, more vaguely, what its stages say; once is enough.
    return None if any(s.trouble for s in state.stages.values()) else _message(trouble)


def _message(trouble: Trouble | None) -> str | None:
    return trouble.message if trouble else None


STEADY = (("answer", "output"), ("doings", "doings"), ("vitals", "vitals"))
"""Parts of a stage that are large and change seldom, and what of its state they show."""


def patch(old: ViewState, new: ViewState, now: float) -> dict[str, Any]:
    """What turns a view of `old` into one of `new`: stage heads, changed entries, appended text.

    Entries are compared by identity: the fold leaves untouched ones as they are.
    """
    stages = []
    for name, stage in new.stages.items():
        before = old.stages.get(name)
        if before is stage:
            continue
        known = {e.key: e for e in before.entries} if before else {}
        changed = [
            entry_patch(known.get(e.key), e, command=stage.command)
            for e in stage.entries
            if known.get(e.key) is not e
        ]
        head = _head(stage, now)
        for part, shows in STEADY:
            if before is not None and getattr(before, shows) is getattr(stage, shows):
                del head[part]  # up to 16 kB that would travel with every event
        stages.append({**head, "entries": changed, "gap": gap(stage.transcript)})
    return {**_run(new, now), "stages": stages}
