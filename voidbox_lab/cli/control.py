"""``voidbox cancel``, ``pause`` and ``resume``: how a run goes on, or does not."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from voidbox_lab.cli import logs
from voidbox_lab.cli.output import Json, out, print_json, working
from voidbox_lab.cli.which import RunRef, RunRefs, connected, whole_id, whole_ids
from voidbox_lab.client import Client
from voidbox_lab.errors import LimitExceeded
from voidbox_lab.spec import TERMINAL, RunRecord

CANCEL_S = 90.0
"""Bound on the wait for the end of cancelled runs: the daemon closes their boxes in well under a minute."""
NOTE_S = 10.0
"""Bound on the time in which a run takes note of what it was told."""
POLL_S = 0.1


def cancel(
    runs: RunRefs,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until they are over.")] = True,
    json: Json = False,
) -> None:
    """Cancel runs and wait until they are over; also right for one that has ended already."""
    with connected() as client:
        records = [client.cancel(run) for run in whole_ids(client, runs)]
        if wait:
            with working("closing boxes"):
                records = _over(client, records)
    if json:
        print_json([record.model_dump(mode="json") for record in records])
    else:
        for record in records:
            out.print(f"{record.id}  {record.state}", markup=False)
    late = [record.id for record in records if record.state not in TERMINAL]
    if wait and late:
        raise LimitExceeded(
            f"{', '.join(late)} did not end within {CANCEL_S:g} s; `voidbox show` says what is still open.",
            limit="time",
            value=CANCEL_S,
            unit="s",
        )


def pause(run: RunRef, json: Json = False) -> None:
    """Have a run start nothing more; what is at work goes on. One that has ended stays as it is."""
    with connected() as client:
        _tell(_changed(client, client.pause(whole_id(client, run)), {"queued", "running"}), json=json)


def resume(
    run: RunRef,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show its events to the end, as logs -f.")
    ] = False,
    json: Json = False,
) -> None:
    """Let a paused run go on, or one whose daemon died: what had succeeded is kept."""
    with connected() as client:
        run = whole_id(client, run)
        if not follow:
            _tell(_changed(client, client.resume(run), {"paused", "interrupted"}), json=json)
            return
        known = logs.last_seq(client, run)
        client.resume(run)
        logs.show(client, run, after=known, follow=True, json=json)


def _tell(record: RunRecord, *, json: bool) -> None:
    if json:
        print_json(record.model_dump(mode="json"))
    else:
        out.print(f"{record.id}  {record.state}", markup=False)


def _changed(client: Client, record: RunRecord, still: set[str]) -> RunRecord:
    """`record` once it is in none of the states `still`: the daemon answers before the run has taken note."""
    end = time.monotonic() + NOTE_S
    while record.state in still:
        if time.monotonic() > end:
            raise LimitExceeded(
                f"The run {record.id} is still {record.state} after {NOTE_S:g} s; look into the daemon's log.",
                limit="time",
                value=NOTE_S,
                unit="s",
            )
        time.sleep(POLL_S)
        record = client.run(record.id)
    return record


def _over(client: Client, records: list[RunRecord]) -> list[RunRecord]:
    end = time.monotonic() + CANCEL_S
    while time.monotonic() < end and any(record.state not in TERMINAL for record in records):
        time.sleep(POLL_S)
        records = [r if r.state in TERMINAL else client.run(r.id) for r in records]
    return records
