"""``voidbox bench``: what boxes, engine and API cost on this machine, each figure beside its floor."""

from __future__ import annotations

import json as json_
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import typer
from rich.markup import escape
from rich.table import Table

from voidbox_lab.cli.output import EXIT, Json, err, out, print_json
from voidbox_lab.errors import UserError

if TYPE_CHECKING:
    from voidbox_lab.bench import Figure


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="What to measure; all but claude-code and million by default.", show_default=False),
    ] = None,
    memory: Annotated[int, typer.Option(help="Guest memory in MB.")] = 256,
    effort: Annotated[float, typer.Option(help="Times the usual number of samples.")] = 1.0,
    save: Annotated[Path | None, typer.Option(help="Write raw samples to this file, as JSON.")] = None,
    json: Json = False,
) -> None:
    """Measure starts, commands, files and footprint of boxes, the engine and the API; about six minutes under TCG.

    engine, readers, million and view need no box and run anywhere. Takes no boxes from the daemon, but leave the
    machine alone meanwhile. Exit code 0 whatever the figures are; what could not be measured is named at the end,
    and the first such gives the exit code. JSON has raw samples.
    """
    from voidbox_lab import bench as benches  # costs 0.3 s

    if not 0 < effort <= 100:
        raise UserError(f"--effort {effort:g} is not above 0 and at most 100; 1 is usual.")
    with nullcontext() if json else err.status("measuring") as status:

        def told(name: str, figures: list[benches.Figure]) -> None:
            if status is not None:
                status.update(f"measured {name}")

        async def measure() -> benches.Report:
            return await benches.run(names or (), memory_mb=memory, effort=effort, told=told)

        report = anyio.run(measure)
    data = report.to_dict()
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json_.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if json:
        print_json(data)
    else:
        out.print(", ".join(f"{name} {value}" for name, value in report.machine.items()), markup=False)
        out.print(table(report.figures))
    for failure in () if json else report.failures:
        err.print(f"[bold red]{failure.bench} was not measured:[/] {escape(failure.message)}")
    if report.failures:
        raise typer.Exit(EXIT[report.failures[0].kind])


def table(figures: Sequence[Figure]) -> Table:
    """A row per figure; times in milliseconds below a second."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "p50", "p95", "p99", "floor", "ratio", "wanted"):
        table.add_column(column, justify="left" if not column else "right")
    for figure in figures:
        unit = figure.subject.unit
        wanted = _wanted(figure, unit)
        mark = {None: "", True: " [green]met[/]", False: " [red]missed[/]"}[figure.met]
        floor = f"{_value(figure.floor.p50, unit)} {figure.floor.name}" if figure.floor else ""
        table.add_row(
            escape(figure.subject.name),
            *(_value(v, unit) for v in (figure.subject.p50, figure.subject.p95, figure.subject.p99)),
            escape(floor),
            f"{figure.ratio:.2f}" if figure.ratio is not None else "",
            wanted + mark,
        )
    return table


def _wanted(figure: Figure, unit: str) -> str:
    if figure.wanted_ratio is not None:
        return f"<= {figure.wanted_ratio:g} x"
    return f"<= {_value(figure.wanted, unit)}" if figure.wanted is not None else ""


def _value(value: float, unit: str) -> str:
    if math.isnan(value):
        return "-"
    if unit != "s":
        return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.1f} {unit}"
    if value < 0.0005:
        return f"{value * 1e6:.1f} µs"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
