"""What a box, a pipeline and a run look like in a notebook; see `voidbox_lab.cards`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from voidbox_lab.cards import MAX_VALUE, Card, Node, Table
from voidbox_lab.observe.quantities import dollars
from voidbox_lab.spec import Pipeline, RunRecord, Stage, StageRecord, VoidBoxSpec, in_words


def box_card(box: VoidBoxSpec, inputs: Iterable[str] = ()) -> Card:
    """A stage as it was declared."""
    badges = [("model", str(box.model))] if box.model else []
    badges += [("warn", text) for text in box.policy.loosened] or [("policy", "default policy")]
    retry = f", tried again {box.retry.n} times" if box.retry else ""
    facts = (
        ("command", shlex.join(box.command) if box.command is not None else ""),
        ("agent", "" if box.command is not None else box.adapter),
        ("skills", ", ".join(map(in_words, box.skills))),
        ("box", f"{box.memory_mb:,} MiB, {box.vcpus} vCPU{'s' * (box.vcpus > 1)}, image {box.image}"),
        ("ends after", f"{box.timeout_s:g} s"),
        ("budget", str(box.budget)),
        ("on failure", f"{box.on_failure}{retry}"),
        ("volumes", ", ".join(map(str, box.volumes))),
        ("folders", ", ".join(map(str, box.mounts))),
        ("inputs", ", ".join(inputs)),
    )
    return Card("box", box.name, tuple(badges), facts, texts=(("prompt", box.prompt),))


def pipeline_card(pipeline: Pipeline) -> Card:
    """Stages, and how they hang together."""
    stages = pipeline.stages
    rows = [
        (s.box.name, _few(s.needs), _does(s), ", ".join(k.name for k in s.box.skills), f"{s.box.memory_mb:,}")
        for s in stages
    ]
    table = Table(("stage", "after", "does", "skills", "MiB"), rows, frozenset({"MiB"}))
    pools = ", ".join(f"{name}: {slots} at once" for name, slots in pipeline.pools.items())
    nodes = tuple(Node(s.box.name, s.needs, note=_does(s)) for s in stages)
    count = f"{len(stages)} stage{'s' * (len(stages) != 1)}"
    return Card("pipeline", count, facts=(("pools", pools),), nodes=nodes, table=table)


def _few(names: tuple[str, ...], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _does(stage: Stage) -> str:
    return shlex.join(stage.box.command)[:80] if stage.box.command is not None else str(stage.box.model)


def run_card(record: RunRecord) -> Card:
    """A run as last seen."""
    needs = {s.box.name: s.needs for s in record.spec.stages}
    stages = [record.stages[name] for name in needs if name in record.stages]
    columns = ("stage", "state", "isolation", "model", "tokens", "cost", "seconds")
    table = Table(columns, [_row(s) for s in stages], frozenset({"tokens", "cost", "seconds"}))
    took = record.finished_at - record.created_at if record.finished_at is not None else None
    facts = (
        ("name", record.spec.name or ""),
        ("cost", dollars(record.cost_usd)),
        ("budget", str(record.spec.budget) if record.spec.budget else ""),
        ("took", f"{took:.1f} s" if took is not None else ""),
        ("result", record.result or ""),
    )
    long = record.result is not None and len(record.result) > MAX_VALUE
    trouble = f"{record.trouble.kind}: {record.trouble.message}" if record.trouble else ""
    nodes = tuple(Node(s.name, needs[s.name], s.state, _note(s)) for s in stages)
    texts = (("the whole result", record.result or ""),) if long else ()
    return Card("run", record.id, (), facts, record.state, nodes, table, trouble, texts)


def _row(stage: StageRecord) -> tuple[str, ...]:
    source = "cached" if stage.cached else stage.model_source
    if source and stage.model and stage.model.startswith(f"{source}:"):
        source = None  # it says so itself
    used = bool(stage.turns or stage.tokens.total)
    return (
        stage.name,
        stage.state,
        stage.box.isolation.upper() if stage.box else "",
        " · ".join(filter(None, (stage.model, source))),
        f"{stage.tokens.total:,}" if used else "",
        dollars(stage.cost_usd) if used else "",
        f"{stage.duration_s:.1f}" if stage.duration_s is not None else "",
    )


def _note(stage: StageRecord) -> str:
    return f"{stage.state}, cached" if stage.cached else stage.state
