"""``voidbox runs``: what the daemon's store knows of runs, and their removal. One run is `show`'s subject."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, get_args

import typer
from rich.table import Table

from voidbox_lab.cli import complete
from voidbox_lab.cli.output import Json, ago, dollars, duration, out, print_json
from voidbox_lab.cli.which import RunRefs, connected, whole_ids
from voidbox_lab.errors import UserError
from voidbox_lab.observe.quantities import size
from voidbox_lab.spec import TERMINAL, RunRecord, RunState
from voidbox_lab.spec.api import PruneReport, PruneRequest

app = typer.Typer(invoke_without_command=True, help="List runs, newest first; prune or remove them.")

MAX_LISTED = 1000
MAX_NAMED = 20
"""Runs that went, as far as they are named one by one."""


@app.callback()
def runs(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(help=f"How many, newest first; at most {MAX_LISTED}.")] = 20,
    state: Annotated[
        str | None,
        typer.Option(help="Only runs in this state.", show_default=False, autocompletion=complete.states),
    ] = None,
    json: Json = False,
) -> None:
    """List runs, newest first; prune or remove them."""
    if ctx.invoked_subcommand is not None:
        _refuse({"--limit": limit != 20, "--state": state is not None, "--json": json}, ctx.invoked_subcommand)
        return
    if not 1 <= limit <= MAX_LISTED:
        raise UserError(f"--limit {limit} is not from 1 to {MAX_LISTED}.")
    wanted = _state(state) if state is not None else None
    with connected() as client:
        found = client.runs(limit=limit, state=wanted)
    if json:
        print_json([record.model_dump(mode="json") for record in found])
    elif not found:
        out.print("no runs" if state is None else f"no runs that are {state}")
    else:
        out.print(table(found, time.time()))


@app.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(help="Ended longer ago than this, such as 12h or 30d.", show_default=False)
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Keep so many of the newest that ended.", show_default=False)
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Only runs in this state; may be given again.",
            show_default=False,
            autocompletion=complete.states,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: Json = False,
) -> None:
    """Forget runs that ended and meet every test given, and the artifacts that only they refer to.

    Without a test no run goes, only artifacts that no run refers to.
    """
    states = tuple(_state(text) for text in state or ())
    if unended := [s for s in states if s not in TERMINAL]:
        raise UserError(f"--state {unended[0]} is no state of a run that ended; such runs are never pruned.")
    request = PruneRequest(
        older_than_s=duration(older_than, "--older-than") if older_than is not None else None,
        keep=keep,
        states=states or None,
        dry_run=dry_run,
    )
    with connected() as client:
        report = client.prune(request)
    if json:
        print_json(report.model_dump(mode="json") | {"dry_run": dry_run})
    else:
        out.print(_said(report, dry_run=dry_run), markup=False)


@app.command("rm")
def remove(runs: RunRefs, json: Json = False) -> None:
    """Forget runs, which must have ended; `voidbox runs prune` then frees what only they used."""
    removed: list[str] = []
    try:
        with connected() as client:
            for run in whole_ids(client, runs):
                client.forget(run)
                removed.append(run)
    finally:
        # Also where one of them was refused: the others are gone.
        if json:
            print_json({"removed": removed})
        elif removed:
            out.print(f"removed {', '.join(removed)}", markup=False)


def table(records: list[RunRecord], now: float) -> Table:
    """A row for each run; `now` is UNIX time."""
    table = Table(box=None, pad_edge=False)
    for column in ("run", "name", "state", "stages", "tokens", "cost", "age"):
        table.add_column(column, justify="right" if column in {"tokens", "cost", "age"} else "left")
    for record in records:
        stages = record.stages.values()
        table.add_row(
            record.id,
            record.spec.name or "-",
            record.state,
            f"{sum(s.state in TERMINAL for s in stages)}/{len(record.spec.stages)}",
            f"{sum(s.tokens.total for s in stages):,}",
            dollars(record.cost_usd),
            ago(max(0.0, now - record.created_at)),
        )
    return table


def _state(text: str) -> RunState:
    for state in get_args(RunState):
        if text == state:
            return state  # type: ignore[no-any-return]
    raise UserError(f"--state {text!r} is no state of a run; there are {', '.join(get_args(RunState))}.")


def _refuse(given: Mapping[str, Any], command: str) -> None:
    # Else `voidbox runs --state failed prune` would prune the others too.
    for option in (name for name, value in given.items() if value):
        raise UserError(
            f"{option} before `{command}` would be for the list; put it after `voidbox runs {command}`."
        )


def _said(report: PruneReport, *, dry_run: bool) -> str:
    count = len(report.runs)
    named = ", ".join(report.runs[:MAX_NAMED]) + (", …" if count > MAX_NAMED else "")
    would = "would remove" if dry_run else "removed"
    what = f"{count} run{'' if count == 1 else 's'}" + (f" ({named})" if count else "")
    files = f"{report.artifacts} artifact{'' if report.artifacts == 1 else 's'}"
    return f"{would} {what} and {files}, {size(report.bytes)}"
