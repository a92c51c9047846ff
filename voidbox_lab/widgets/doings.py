"""What a stage did besides talking and calling tools, as a view keeps it: what its policy forbade, where it
connected to, the files it left, the folders it had. Folds events; bounded whatever they say.

All text in it is clean and on one line, none of it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from voidbox_lab.observe.quantities import count, size
from voidbox_lab.spec.events import Denied, Egress, FileKept, Mounted
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.run import StageRecord
from voidbox_lab.widgets.frozen import replaced
from voidbox_lab.widgets.text import one_line

MAX_DENIALS = 6
MAX_CONNECTIONS = 6
MAX_FILES = 12
MAX_MOUNTS = 16
KNOWN_FILES = 256
"""Most whose sizes are kept, so that one told twice counts once."""
WIDTH = 240


@dataclass(frozen=True)
class Denial:
    """Something that the policy forbade; repetitions are counted. `key` counts from 0 within the stage."""

    key: int
    rule: str
    subject: str
    message: str
    program: str
    count: int


@dataclass(frozen=True)
class Doings:
    """Counts of all, and the last few of each."""

    denied: int = 0
    denials: tuple[Denial, ...] = ()
    """The last ones that are not each other's repetition."""
    next_key: int = 0
    connections: int = 0
    refused: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    last: tuple[str, ...] = ()
    """The last connections, each in words."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Path to size in bytes."""
    more_files: int = 0
    mounts: tuple[str, ...] = ()
    """The last comings and goings of folders, each in words."""
    mounted: int = 0
    """How many there were."""


def did(doings: Doings, body: Denied | Egress | FileKept | Mounted) -> Doings:
    """`doings` after an event."""
    match body:
        case Denied():
            return _denied(doings, body)
        case Egress():
            return replaced(
                doings,
                connections=doings.connections + 1,
                refused=doings.refused + (body.verdict == "denied"),
                bytes_out=doings.bytes_out + max(0, body.bytes_out),
                bytes_in=doings.bytes_in + max(0, body.bytes_in),
                last=(*doings.last, connection(body))[-MAX_CONNECTIONS:],
            )
        case FileKept():
            return _kept(doings, {body.path: body.file})
        case Mounted():
            mounts = (*doings.mounts, mounted(body))[-MAX_MOUNTS:]
            return replaced(doings, mounts=mounts, mounted=doings.mounted + 1)


def left(doings: Doings, files: Mapping[str, InputFile]) -> Doings:
    """`doings` with the files that a stage left, all of them."""
    return _kept(replaced(doings, files={}, more_files=0), files) if files else doings


def recorded(doings: Doings, kept: StageRecord) -> Doings:
    """`doings` with the counts of the store's record, which has seen every event."""
    doings = replaced(
        doings,
        denied=kept.denied,
        connections=kept.connections,
        bytes_out=kept.bytes_out,
        bytes_in=kept.bytes_in,
    )
    return left(doings, kept.files)


def _denied(doings: Doings, body: Denied) -> Doings:
    rule, subject = one_line(body.rule, 100), one_line(body.subject, WIDTH)
    message, program = one_line(body.message, 400), one_line(body.program, 64)
    denials = list(doings.denials)
    same = next((d for d in denials if (d.rule, d.subject) == (rule, subject)), None)
    if same is not None:
        denials[denials.index(same)] = replaced(same, count=same.count + body.count)
        return replaced(doings, denied=doings.denied + body.count, denials=tuple(denials))
    denials.append(Denial(doings.next_key, rule, subject, message, program, body.count))
    return replaced(
        doings,
        denied=doings.denied + body.count,
        denials=tuple(denials[-MAX_DENIALS:]),
        next_key=doings.next_key + 1,
    )


def _kept(doings: Doings, files: Mapping[str, InputFile]) -> Doings:
    known, more = dict(doings.files), doings.more_files
    for path, file in files.items():
        if path in known or len(known) < KNOWN_FILES:
            known[path] = file.size
        else:
            more += 1
    return replaced(doings, files=known, more_files=more)


def told(denial: Denial) -> str:
    """A denial on one line: its rule, the sentence, who tried and how often."""
    by = f" ({denial.program})" if denial.program else ""
    times = f", {denial.count:,} times" if denial.count > 1 else ""
    return f"{denial.rule}: {denial.message or denial.subject}{by}{times}"


def connection(body: Egress) -> str:
    """A connection on one line."""
    where = one_line(f"{body.host}:{body.port}", 200)
    if body.verdict == "denied":
        return one_line(f"{where} denied: {body.reason or body.rule}", WIDTH)
    carried = f"{size(max(0, body.bytes_out))} out, {size(max(0, body.bytes_in))} in"
    said = f"{carried}, {max(0.0, body.duration_s):.1f} s"
    why = f": {body.reason}" if body.reason else ""
    return one_line(f"{where} {body.verdict} ({body.rule}), {said}{why}", WIDTH)


def mounted(body: Mounted) -> str:
    """A folder's coming or going on one line."""
    way = "brought back" if body.direction == "out" else "mounted"
    return one_line(f"{body.mount} {way}: {count(body.files, 'file')}, {size(body.bytes)} ({body.how})", WIDTH)


def presented(doings: Doings) -> list[dict[str, Any]]:
    """Groups for every surface: ``kind``, a ``summary``, its ``lines``."""
    return [group for group in _groups(doings) if group["summary"]]


def _groups(doings: Doings) -> Iterator[dict[str, Any]]:
    if doings.denied:
        rules = ", ".join(dict.fromkeys(d.rule for d in doings.denials))
        lines = [told(d) for d in doings.denials]
        if doings.next_key > len(doings.denials):
            lines.insert(0, f"… {doings.next_key - len(doings.denials):,} earlier ones not shown …")
        about = f": {rules}" if rules else ""
        yield {"kind": "denied", "summary": f"{doings.denied:,} denied by the policy{about}", "lines": lines}
    if doings.connections:
        yield {"kind": "egress", "summary": network(doings), "lines": list(doings.last)}
    if doings.files:
        shown = [f"{one_line(path, 160)} ({size(n)})" for path, n in list(doings.files.items())[:MAX_FILES]]
        number = len(doings.files) + doings.more_files
        lines = shown + ([f"… and {number - len(shown)} more"] if number > len(shown) else [])
        total = size(sum(doings.files.values()))
        yield {"kind": "files", "summary": f"{count(number, 'output file')}, {total}", "lines": lines}
    if doings.mounts:
        yield {"kind": "mounts", "summary": "host folders", "lines": list(doings.mounts)}


def network(doings: Doings) -> str:
    """Connections in numbers."""
    refused = f", {doings.refused:,} denied" if doings.refused else ""
    carried = f"{size(doings.bytes_out)} out, {size(doings.bytes_in)} in"
    return f"{count(doings.connections, 'connection')}{refused}, {carried}"
