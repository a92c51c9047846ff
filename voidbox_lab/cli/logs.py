"""``voidbox logs``: a run's events as lines, or as they are in JSON Lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, get_args

import typer
from typer import Exit

from voidbox_lab.cli import complete
from voidbox_lab.cli.loglines import Lines
from voidbox_lab.cli.output import EXIT, Json, json_line, remark
from voidbox_lab.cli.which import RunRef, connected, exit_code, stage_of, whole_id
from voidbox_lab.client import Client
from voidbox_lab.errors import UserError
from voidbox_lab.spec.events import Body, Event

TYPES: tuple[str, ...] = tuple(kind.model_fields["type"].default for kind in get_args(get_args(Body)[0]))
QUIET = frozenset({"telemetry"})
"""Types that are shown as lines only if asked for: one for each box and second."""


def logs(
    run: RunRef,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Wait for what is to come; the exit code is then the run's own."),
    ] = False,
    stage: Annotated[
        str | None,
        typer.Option(help="Only events of this stage.", show_default=False, autocompletion=complete.stages),
    ] = None,
    since: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Only events after this number.")] = 0,
    tail: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Begin at most N events before the last.", show_default=False),
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE,...", help=f"Only these: {', '.join(TYPES)}.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Print a run's events in order; with --json one JSON object a line.

    Without -f it ends with the last event there is now. Ctrl-C ends the reading and leaves the run alone.
    """
    types = _types(type_)
    with connected() as client:
        run = whole_id(client, run)
        if stage is not None:
            stage_of(client.run(run), stage)
        show(client, run, after=since, follow=follow, json=json, stage=stage, types=types, tail=tail)


def show(
    client: Client,
    run: str,
    *,
    after: int = 0,
    follow: bool,
    json: bool,
    stage: str | None = None,
    types: frozenset[str] | None = None,
    tail: int | None = None,
) -> None:
    """Print the events of `run` after number `after`, of `stage` and of `types` alone if given.

    Raises:
        Exit: with `follow`, at the end, with the code that stands for how the run ended; 130 after Ctrl-C.
        VoidboxError: the run is unknown, or the daemon was lost.
    """
    try:
        events = client.events(run, after, follow=follow, tail=tail)
        wanted = (
            e for e in events if (stage is None or e.stage == stage) and (types is None or e.body.type in types)
        )
        for line in _as_json(wanted) if json else _as_lines(wanted, QUIET if types is None else frozenset()):
            sys.stdout.write(line + "\n")
            if follow:
                sys.stdout.flush()
        if follow:
            raise Exit(exit_code(client.run(run)))
    except KeyboardInterrupt:
        remark(f"stopped reading; {run} is left as it is")
        raise Exit(EXIT["cancelled"]) from None


def last_seq(client: Client, run: str) -> int:
    """The number of the last event of `run`; 0 if it has none. Raises VoidboxError."""
    return max((event.seq for event in client.events(run, follow=False, tail=1)), default=0)


def _as_json(events: Iterator[Event]) -> Iterator[str]:
    return (json_line(event.model_dump(mode="json")) for event in events)


def _as_lines(events: Iterator[Event], quiet: frozenset[str]) -> Iterator[str]:
    lines = Lines()
    for event in events:
        if event.body.type not in quiet:
            yield from lines.of(event)
    yield from lines.rest()


def _types(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    names = frozenset(filter(None, (name.strip() for name in text.split(","))))
    if unknown := sorted(names - set(TYPES)):
        raise UserError(f"--type {unknown[0]!r} is no type of event; there are {', '.join(TYPES)}.")
    if not names:
        raise UserError(f"--type names no type of event; there are {', '.join(TYPES)}.")
    return names
