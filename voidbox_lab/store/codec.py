"""What every backend does alike: check, encode, number and fold. Not for where anything is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pydantic_core import PydanticSerializationError

from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.spec import RunRecord, RunSpec
from voidbox_lab.spec.base import Frozen
from voidbox_lab.spec.events import Body, Event
from voidbox_lab.store import fold
from voidbox_lab.store.contract import MAX_EVENT_BYTES, MAX_PAGE, MAX_SPEC_BYTES, Entry, is_vital

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY = re.compile(r"sha256:[0-9a-f]{64}")


def check_run(run: str) -> str:
    """`run` if it can be a new run's id; such an id is safe as a file name and in a key.

    Raises:
        UserError: it cannot.
    """
    if not _RUN.fullmatch(run):
        raise UserError(
            f"{run[:80]!r} is not a run id; use 1 to 128 letters, digits, '.', '_' and '-', "
            "with a letter or digit in front."
        )
    return run


def check_key(key: str) -> str:
    """`key` if it is a digest.

    Raises:
        UserError: it is not.
    """
    if not _KEY.fullmatch(key):
        raise UserError(f"{key[:80]!r} is not a key of the stage cache; it looks like sha256:<64 hex digits>.")
    return key


def page(limit: int) -> int:
    """`limit` within its bounds."""
    return max(0, min(limit, MAX_PAGE))


def spec_text(spec: RunSpec) -> str:
    """`spec` as JSON. `LimitExceeded` above `MAX_SPEC_BYTES`."""
    text = spec.model_dump_json()
    if len(text.encode()) > MAX_SPEC_BYTES:
        raise LimitExceeded(
            f"The run's spec has more than {MAX_SPEC_BYTES} bytes; shorten prompts and skills.",
            limit="spec",
            value=MAX_SPEC_BYTES,
            unit="bytes",
        )
    return text


def body_text(entry: Entry) -> str:
    """The body of `entry` as JSON, on one line.

    Raises:
        UserError: it has no JSON form.
        LimitExceeded: more than `MAX_EVENT_BYTES`.
    """
    try:
        text = entry.body.model_dump_json()
    except PydanticSerializationError as e:
        # What one guest made of its event must not cost the others theirs.
        raise UserError(f"An event of type {entry.body.type!r} has no JSON form.", cause="event") from e
    if len(text.encode()) > MAX_EVENT_BYTES:
        raise LimitExceeded(
            f"An event of type {entry.body.type!r} has more than {MAX_EVENT_BYTES} bytes.",
            limit="event",
            value=MAX_EVENT_BYTES,
            unit="bytes",
        )
    return text


def record_text(record: RunRecord) -> str:
    """`record` as JSON without its spec, which may be large, never changes, and is kept apart."""
    return record.model_dump_json(exclude={"spec"})


def head_text(record: RunRecord) -> str:
    """`record` as JSON without its spec and its stages, for a store that keeps those apart."""
    return record.model_dump_json(exclude={"spec", "stages"})


def whole_text(head: str, stages: str) -> str:
    """A `record_text` again: of a `head_text` and the members of the JSON object of stages by name."""
    return f'{{"stages":{{{stages}}},{head[1:]}'


def record_of(spec: str, record: str) -> RunRecord:
    """The inverse of `spec_text` and `record_text`. `pydantic.ValidationError` if they are not that."""
    # Both are JSON objects; joined as text, so that each is parsed once.
    return RunRecord.model_validate_json(f'{{"spec":{spec},{record[1:]}')


class Line(Frozen):
    """An event in a log of lines. `batch` is the number of the last event appended together with it, so that
    a batch is there as a whole if the line says of itself that it is that last one, and else not at all."""

    seq: int
    batch: int
    at: float
    stage: str | None
    body: Body


def line(event: Event, batch: int, body: str) -> str:
    """A `Line` as JSON without its end; `body` is the event's as JSON already."""
    stage = json.dumps(event.stage)
    return f'{{"seq":{event.seq},"batch":{batch},"at":{event.at!r},"stage":{stage},"body":{body}}}'


def event_of(run: str, text: str | bytes) -> tuple[Event, int]:
    """The event of a line, and its batch. `pydantic.ValidationError` if it is none."""
    kept = Line.model_validate_json(text)
    event = Event.model_construct(seq=kept.seq, run=run, at=kept.at, stage=kept.stage, body=kept.body)
    return event, kept.batch


def number(
    record: RunRecord, last: int, entries: Sequence[Entry], max_events: int
) -> tuple[RunRecord, list[Event]]:
    """`entries` as events behind number `last`, and `record` after them (the same object if none touched it).

    Raises:
        LimitExceeded: more than `max_events`, except of what `is_vital`.
    """
    events = []
    for seq, entry in enumerate(entries, start=last + 1):
        if seq > max_events and not is_vital(entry.body):
            raise LimitExceeded(
                f"The run {record.id} has {max_events} events, the most a run may have.",
                limit="events",
                value=max_events,
                unit="events",
            )
        # Bodies are frozen models already; validating them again would cost more than keeping them.
        event = Event.model_construct(
            seq=seq, run=record.id, at=float(entry.at), stage=entry.stage, body=entry.body
        )
        record = fold.apply(record, event)
        events.append(event)
    return record, events


def unknown(run: str) -> UserError:
    """There is no such run."""
    return UserError(f"There is no run {run[:80]!r}; `voidbox runs` lists those there are.", cause="unknown-run")


def taken(run: str) -> UserError:
    """There is such a run already."""
    return UserError(f"There is a run {run} already; give the new one another id.")


def unended(run: str) -> UserError:
    """The run goes on and is not to be deleted."""
    return UserError(f"The run {run} has not ended; cancel it before you delete it.", cause="run-not-ended")


def damaged(run: str, where: object) -> ProviderError:
    """What is kept of the run is not what this release writes."""
    return ProviderError(f"The run {run} in {where} is not as this release writes it; delete it.", cause="store")
