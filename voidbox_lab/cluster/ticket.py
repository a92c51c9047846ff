"""What travels between a daemon and a worker, and its bounds.

A *ticket* is a stage on its way to whichever worker has room. An *attempt* is one beginning of it on one worker:
when a worker is lost, Dask gives the ticket to another one, and that is another attempt. A *message* is what an
attempt says; messages of an attempt are numbered from 1 without gaps, and the daemon confirms numbers.

Model keys are no part of this: a worker has its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from voidbox_lab import __version__
from voidbox_lab.engine.admission import BOX_OVERHEAD_MB
from voidbox_lab.spec import InputFile, Stage, VoidBoxSpec
from voidbox_lab.spec.base import Frozen

MEMORY, VCPUS = "memory_mb", "vcpus"
"""The abstract resources of a worker that says it runs boxes: MiB with the host's share of a box, and vCPUs."""
LEASE_S = 20.0
"""How long a worker goes on with a stage whose daemon it has not heard of."""
EXCHANGE_S = 5.0
"""Longest time for which a worker keeps an exchange open while it has nothing to say; well below `LEASE_S`."""
CALL_S = 10.0
"""Bound on a call to a worker, beyond `EXCHANGE_S` for an exchange."""
REPLY_BYTES = 4 << 20
"""About how much one reply holds; the rest comes with the next."""
WINDOW_BYTES = 4 << 20
"""What an attempt may have said without being confirmed before it has to wait."""
CHUNK_BYTES = 4 << 20
"""Inputs travel in pieces of this size."""
FILE_BYTES = 256 << 10
"""Files that a stage left travel in pieces of at most this size."""
PIECE_CHARS = 1 << 20
"""Answers travel in pieces of this size."""
MAX_ANSWER_CHARS = 64 << 20
"""Longest answer; an agent cannot write more (see `voidbox_lab.engine.stage.MAX_OUTPUT_BYTES`)."""

Kind = Literal["begun", "needs", "moved", "event", "metered", "answer", "file", "end"]
"""``begun`` waits for its confirmation before anything is done; ``end`` is the last, the box is closed by then.
``file`` is a piece of a file that the stage left, in Base64; an empty one ends the file."""
Message = tuple[str, int, Kind, str]
"""Attempt, number, kind and JSON (for ``answer``: text)."""


class Ticket(Frozen):
    """A stage, and what it is given by name and digest; the bytes are asked for where they are not known."""

    id: str
    daemon: str
    """The daemon's executor, of this start."""
    version: str = __version__
    run: str
    stage: Stage
    files: dict[str, InputFile]
    upstream: dict[str, InputFile]
    """Stage to the bytes of its output."""
    identity: str | None
    """What the daemon takes the box to run on (`voidbox_lab.engine.cache.Identify`); None: it does not know."""
    traceparent: str = ""
    """As in `StageJob`."""

    @property
    def attempt(self) -> str:
        """The name of a new attempt."""
        return f"{self.id}/{secrets.token_hex(4)}"


def ticket_of(attempt: str) -> str:
    """The ticket of an attempt."""
    return attempt.partition("/")[0]


def topic_of(daemon: str) -> str:
    """Where workers say that they have begun something for `daemon`."""
    return f"voidbox-{daemon}"


def resources(box: VoidBoxSpec) -> dict[str, float]:
    """What a worker must have free for `box`."""
    return {MEMORY: float(box.memory_mb + BOX_OVERHEAD_MB), VCPUS: float(box.vcpus)}


def declared(worker: Mapping[str, Any]) -> dict[str, float] | None:
    """The resources of a worker as its scheduler tells them; None if it does not say that it runs boxes."""
    has = worker.get("resources") or {}
    if MEMORY not in has or VCPUS not in has:
        return None
    return {MEMORY: float(has[MEMORY]), VCPUS: float(has[VCPUS])}
