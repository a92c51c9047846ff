"""``voidbox runs``, ``show`` and ``cancel``: what the daemon's store knows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from voidbox_lab.cli.output import ago, dollars, out, print_json
from voidbox_lab.client import Client

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def runs(limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20, json: Json = False) -> None:
    """List runs, newest first."""
    with Client() as client:
        found = client.runs(limit=limit)
    if json:
        print_json([record.model_dump(mode="json") for record in found])
        return
    table = Table("run", "state", "stages", "tokens", "cost", "created", box=None)
    for record in found:
        stages = record.stages.values()
        table.add_row(
            record.id,
            record.state,
            escape(", ".join(s.box.name for s in record.spec.stages)),
            str(sum(s.tokens.total for s in stages)),
            dollars(record.cost_usd),
            datetime.fromtimestamp(record.created_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        )
    out.print(table)


def show(run: RunId, json: Json = False) -> None:
    """Show a run: each stage's state, what it ran on, what it cost and what it answered."""
    with Client() as client:
        record = client.run(run)
    if json:
        print_json(record.model_dump(mode="json"))
        return
    out.print(f"{record.id}  {record.state}  {dollars(record.cost_usd)}")
    if record.trouble:
        out.print(f"[red]{escape(record.trouble.message)}[/]")
    for name, stage in record.stages.items():
        box = (
            f"{stage.box.isolation}, {stage.box.vsock} vsock, {stage.box.memory_mb} MB" if stage.box else "no box"
        )
        out.print(
            f"[bold]{name}[/]  {stage.state}  {box}  {escape(stage.model or '-')} ({stage.model_source or '-'})  "
            f"{stage.tokens.total} tokens  {dollars(stage.cost_usd)}  {ago(stage.duration_s)}"
        )
        if stage.trouble:
            out.print(f"  [red]{escape(stage.trouble.message)}[/]")
        if stage.output:
            out.print(escape(stage.output.strip()))


def cancel(run: RunId) -> None:
    """Cancel a run; also right for one that has ended already."""
    with Client() as client:
        record = client.cancel(run)
    out.print(f"{record.id}  {record.state}")
