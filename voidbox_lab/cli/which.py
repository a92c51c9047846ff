"""Which run is meant: its id, the beginning of it, or ``@last``. And a client that says when it starts a daemon.

The daemon knows whole ids alone; the rest is looked up here, among the newest runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Annotated

import typer

from voidbox_lab.cli import complete
from voidbox_lab.cli.output import EXIT, working
from voidbox_lab.client import Client
from voidbox_lab.errors import UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import RunRecord, StageRecord

RUN = "A run: its id, the beginning of it, or @last."
RunRef = Annotated[
    str, typer.Argument(metavar="RUN", help=RUN, show_default=False, autocompletion=complete.run_ids)
]
RunRefs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...", help=RUN + " More than one may be given.", show_default=False,
        autocompletion=complete.run_ids,
    ),
]  # fmt: skip
LAST = "@last"
PREFIX = "run-"
"""What every id begins with, and what may be left out."""
MAX_SEARCHED = 2000
"""Newest runs among which a beginning is looked for."""
PAGE = 100
MAX_NAMED = 8
"""Candidates that a message names."""
_WHOLE = re.compile(r"run-[0-9a-f]{12}")


@contextmanager
def connected(settings: Settings | None = None) -> Iterator[Client]:
    """A client; on a terminal it shows that a daemon is being started, which takes a second or more."""
    settings = settings or Settings.from_env()
    first = settings.daemon is None and not settings.socket.exists()
    with working("starting the daemon") if first else nullcontext():
        client = Client(settings).__enter__()
    with closing(client):
        yield client


def is_whole(text: str) -> bool:
    """Whether `text` is a whole id, so that no daemon has to be asked for it."""
    return _WHOLE.fullmatch(text) is not None


def whole_id(client: Client, text: str) -> str:
    """The id of the run that `text` means. A whole id is taken as it is, whether there is such a run or not.

    Raises:
        UserError: no run, or more than one, begins like that.
    """
    if is_whole(text):
        return text
    if text == LAST:
        newest = client.runs(limit=1)
        if not newest:
            raise UserError("There is no run yet, so @last is none; run something first.", cause="unknown-run")
        return newest[0].id
    if not text:
        raise UserError("An empty word names no run; give an id, its beginning, or @last.")
    found = [record for record in _newest(client) if record.id.startswith((text, PREFIX + text))]
    exact = [record.id for record in found if record.id == text]
    if exact or len(found) == 1:
        return exact[0] if exact else found[0].id
    if not found:
        raise UserError(
            f"No run begins with {text!r} among the newest {MAX_SEARCHED}; `voidbox runs` lists them.",
            cause="unknown-run",
        )
    named = ", ".join(f"{record.id} ({record.state})" for record in found[:MAX_NAMED])
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    raise UserError(f"{text!r} may be {named}{more}; give more of the id.", cause="ambiguous-run")


def whole_ids(client: Client, texts: Sequence[str]) -> list[str]:
    """`whole_id` of each, in order, each run once; raises before anything was done to any of them."""
    return list(dict.fromkeys(whole_id(client, text) for text in texts))


def stage_of(record: RunRecord, name: str) -> StageRecord:
    """The stage `name`. Raises UserError."""
    if name not in record.stages:
        names = ", ".join(list(record.stages)[:MAX_NAMED]) + (", …" if len(record.stages) > MAX_NAMED else "")
        raise UserError(f"The run {record.id} has no stage {name!r}; it has {names}.", cause="unknown-stage")
    return record.stages[name]


def exit_code(record: RunRecord) -> int:
    """The exit code that stands for how a run ended; 3 if its daemon died, 0 if it has not ended."""
    if record.state in {"failed", "cancelled"}:
        kind = record.trouble.kind if record.trouble else None
        return EXIT[kind or ("cancelled" if record.state == "cancelled" else "command")]
    return EXIT["provider"] if record.state == "interrupted" else 0


def _newest(client: Client) -> Iterator[RunRecord]:
    before: str | None = None
    for _ in range(MAX_SEARCHED // PAGE):
        page = client.runs(limit=PAGE, before=before)
        yield from page
        if len(page) < PAGE:
            return
        before = page[-1].id
