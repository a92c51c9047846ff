"""``voidbox show``: one run as it is now, from its record alone; events are `logs`'s subject."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from voidbox_lab.cli import complete
from voidbox_lab.cli.loglines import box, spent, tokens
from voidbox_lab.cli.output import Json, ago, dollars, err, out, print_json, visible
from voidbox_lab.cli.which import RunRef, connected, stage_of, whole_id
from voidbox_lab.client import Client
from voidbox_lab.errors import UserError
from voidbox_lab.observe.quantities import size
from voidbox_lab.spec import TERMINAL, Budget, InputFile, RunRecord, StageRecord

MAX_BLOCKS = 12
"""Stages told of one by one; more are a table."""
MAX_ROWS = 50
MAX_SHOWN = 2000
"""Characters of an output that are shown."""
MAX_CELL = 60
MAX_FILES = 8
"""Output files that are named."""
COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "skipped": "yellow", "running": "bold"}


def show(
    run: RunRef,
    stage: Annotated[
        str | None, typer.Option(help="This stage alone.", show_default=False, autocompletion=complete.stages)
    ] = None,
    output: Annotated[
        bool, typer.Option("--output", help="Print the stage's whole output and nothing else.")
    ] = False,
    files: Annotated[
        bool, typer.Option("--files", help="List what the stages left in /workspace/output, and nothing else.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="A row for every stage, however many.")] = False,
    json: Json = False,
) -> None:
    """Show a run: each stage's state, what it ran on, what it cost and what it answered."""
    if output and files:
        raise UserError("--output prints a stage's answer and --files a list; leave one out.")
    if output and json:
        raise UserError("--output prints the output as it is, and --json JSON, which has it too; leave one out.")
    with connected() as client:
        record = client.run(whole_id(client, run))
        if output:
            _print_output(client, record, stage)
            return
    chosen = stage_of(record, stage) if stage is not None else None
    if files:
        _print_files(record, [chosen] if chosen is not None else list(record.stages.values()), json)
        return
    if json:
        print_json((chosen or record).model_dump(mode="json"))
        return
    now = time.time()
    budgets = {s.box.name: s.box.budget for s in record.spec.stages}
    if chosen is not None:
        _block(record.id, chosen, budgets[chosen.name], now)
        return
    _head(record, now)
    if len(record.stages) <= MAX_BLOCKS and not everything:
        for one in record.stages.values():
            _block(record.id, one, budgets[one.name], now)
    else:
        shown = list(record.stages.values()) if everything else notable(list(record.stages.values()))
        out.print(_table(shown, now))
        if len(shown) < len(record.stages):
            out.print(f"… and {len(record.stages) - len(shown)} more stages; --all shows every one", markup=False)


def notable(stages: Sequence[StageRecord]) -> list[StageRecord]:
    """At most `MAX_ROWS` of `stages`, in their order: those that failed first, those at work, then others."""

    def rank(stage: StageRecord) -> int:
        if stage.state == "failed":
            return 0
        return 1 if stage.state not in TERMINAL | {"queued"} else 2

    kept = sorted(range(len(stages)), key=lambda n: rank(stages[n]))[:MAX_ROWS]
    return [stages[n] for n in sorted(kept)]


def _head(record: RunRecord, now: float) -> None:
    states = Counter(stage.state for stage in record.stages.values())
    total = sum(stage.tokens.total for stage in record.stages.values())
    took = ago(max(0.0, (record.finished_at or now) - record.created_at))
    name = f"  {record.spec.name}" if record.spec.name else ""
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    budget = record.spec.budget
    out.print(
        f"[bold]{record.id}[/]{name}  {_state(record.state)}  {counted}  "
        f"{total:,} tokens{_of(budget.tokens, ',')}  {dollars(record.cost_usd)}{_usd(budget)}  "
        f"{took}{_seconds(budget)}"
    )
    if record.trouble:
        out.print(f"[red]{escape(visible(record.trouble.message))}[/]")


def _block(run: str, stage: StageRecord, budget: Budget, now: float) -> None:
    out.print(f"[bold]{stage.name}[/]  {_state(stage.state)}")
    for key, value in _facts(run, stage, budget, now):
        out.print(f"  [dim]{key:<8}[/] {escape(value)}")
    if stage.output:
        clipped = len(stage.output) > MAX_SHOWN
        out.print(visible(stage.output[:MAX_SHOWN].strip("\n")), markup=False)
        if clipped or stage.output_file:
            whole = size(stage.output_file.size) if stage.output_file else f"{len(stage.output):,} characters"
            out.print(f"… {whole} in all: voidbox show {run} --stage {stage.name} --output", markup=False)


def _facts(run: str, stage: StageRecord, budget: Budget, now: float) -> Iterator[tuple[str, str]]:
    if stage.cached:
        yield "cached", f"from {stage.cached.run}/{stage.cached.stage}, nothing ran"
    if stage.queue:
        yield "queue", f"{stage.queue.ahead} in front: {visible(stage.queue.message)}"
    if stage.box:
        yield "box", box(stage.box) + (f"; {visible(stage.box.start_note)}" if stage.box.start_note else "")
    if stage.model:
        yield (
            "model",
            f"{visible(stage.model)} ({stage.model_source or 'no call answered yet'}), {stage.turns} turns",
        )
    if stage.tokens.total or budget.tokens:
        yield "tokens", tokens(stage.tokens) + _of(budget.tokens, ",")
    if stage.model or budget.usd:
        yield "cost", spent(None if stage.unpriced else stage.cost_usd or 0.0, stage.model_source) + _usd(budget)
    if stage.tool_calls:
        yield "tools", f"{stage.tool_calls} calls"
    if stage.denied:
        yield "denied", f"{stage.denied:,} times by the policy; voidbox logs {run} says what"
    if stage.connections:
        carried = f"{size(stage.bytes_out)} out, {size(stage.bytes_in)} in"
        yield "egress", f"{stage.connections:,} connections, {carried}"
    if stage.files:
        yield "files", _files(stage.files)
    if stage.attempts > 1:
        yield "attempts", str(stage.attempts)
    if stage.started_at is not None:
        yield "time", ago(max(0.0, (stage.finished_at or now) - stage.started_at)) + _seconds(budget)
    if stage.trouble:
        yield "trouble", f"{stage.trouble.kind}: {visible(stage.trouble.message)}"


def _files(files: Mapping[str, InputFile]) -> str:
    total = size(sum(file.size for file in files.values()))
    names = ", ".join(visible(path) for path in list(files)[:MAX_FILES])
    more = f", … and {len(files) - MAX_FILES} more" if len(files) > MAX_FILES else ""
    return f"{len(files):,}, {total}: {names}{more}"


def _table(stages: Sequence[StageRecord], now: float) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "attempts", "tokens", "cost", "time", "box", "note"):
        table.add_column(column, justify="right" if column in {"attempts", "tokens", "cost", "time"} else "left")
    for stage in stages:
        took = None if stage.started_at is None else max(0.0, (stage.finished_at or now) - stage.started_at)
        note = (
            stage.trouble.message if stage.trouble
            else f"cached from {stage.cached.run}" if stage.cached
            else f"{stage.queue.ahead} in front" if stage.queue
            else ""
        )  # fmt: skip
        note = visible(" ".join(note.split()))
        table.add_row(
            stage.name,
            _state(stage.state),
            str(stage.attempts),
            f"{stage.tokens.total:,}",
            spent(None if stage.unpriced else stage.cost_usd or 0.0, stage.model_source) if stage.turns else "-",
            ago(took),
            f"{stage.box.isolation}, {stage.box.vsock}" if stage.box else "-",
            escape(note if len(note) <= MAX_CELL else note[: MAX_CELL - 1] + "…"),
        )
    return table


def _print_output(client: Client, record: RunRecord, name: str | None) -> None:
    """A stage's output byte for byte; on a terminal with control characters written out: a guest wrote them."""
    if name is None and len(record.stages) > 1:
        raise UserError(f"The run {record.id} has {len(record.stages)} stages; say which with --stage.")
    stage = stage_of(record, name) if name is not None else next(iter(record.stages.values()))
    if stage.output is None:
        raise UserError(
            f"The stage {stage.name} of {record.id} is {stage.state} and has no output.", cause="no-output"
        )
    data = (
        client.download(stage.output_file.digest) if stage.output_file else stage.output.encode(errors="replace")
    )
    if sys.stdout.isatty():
        sys.stdout.write(visible(data.decode(errors="replace")))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _print_files(record: RunRecord, stages: Sequence[StageRecord], json: bool) -> None:
    """What `stages` left; to get it there is `voidbox cp`."""
    left = [(stage.name, path, file) for stage in stages for path, file in stage.files.items()]
    if json:
        print_json([{"stage": s, "path": p, "size": f.size, "digest": f.digest} for s, p, f in left])
        return
    if not left:
        err.print(f"No stage of {record.id} left files in /workspace/output.", markup=False)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "path", "size"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for name, path, file in left:
        table.add_row(name, escape(visible(path)), size(file.size))
    out.print(table)


def _state(state: str) -> str:
    colour = COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def _of(bound: float | None, form: str) -> str:
    return f" of {bound:{form}}" if bound is not None else ""


def _usd(budget: Budget) -> str:
    return f" of ${budget.usd:g}" if budget.usd is not None else ""


def _seconds(budget: Budget) -> str:
    return f" of {ago(budget.seconds)}" if budget.seconds is not None else ""
