"""What comes out of a box once its agent has ended: the answer, or why there is none, and the files it left."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager

import anyio

from voidbox_lab.agents import Parser
from voidbox_lab.box.bundles import LeftOut, Packed
from voidbox_lab.engine.job import Emit, StageJob
from voidbox_lab.engine.ports import Box, Exit
from voidbox_lab.engine.provision import OUTPUT, WORKSPACE
from voidbox_lab.errors import CommandFailed, LimitExceeded, UserError
from voidbox_lab.spec import InputFile
from voidbox_lab.spec.events import FileKept, Notice
from voidbox_lab.store import MAX_EVENT_BYTES

COLLECT_S = 300.0
"""Bound on keeping the files of a stage, in seconds: `MAX_BYTES` at less than a megabyte a second."""
OUTPUT_DIR = f"{WORKSPACE}/{OUTPUT}"
MAX_FILES = 256
"""Files that a stage may leave."""
MAX_ENTRIES = 2048
"""Of these and their directories together."""
MAX_BYTES = 256 << 20
"""Bytes of all of them."""
MAX_LIST_BYTES = MAX_EVENT_BYTES // 8
"""Bytes of their list, as JSON: it is in the event of the stage's end, beside the answer."""


def answer(job: StageJob, parser: Parser, ended: Exit) -> str:
    """The answer.

    Raises:
        LimitExceeded: the box's memory was used up.
        CommandFailed: there is none.
    """
    name, who = job.box.name, "agent" if job.box.command is None else "command"
    result = parser.finish(ended.code)
    if ended.signal is not None:
        how = f"was killed by signal {ended.signal}"
        if ended.oom:
            raise LimitExceeded(
                f"The {who} of stage {name!r} used up the box's {job.box.memory_mb} MiB of memory; give it more.",
                limit="memory",
                value=job.box.memory_mb,
                unit="MiB",
                source="stage",
            )
    else:
        how = f"ended with exit code {ended.code}"
    if ended.code == 0 and not result.is_error and result.output is not None:
        return result.output
    said = f": {shortened(result.output, 500)}" if result.output else "; its log says why"
    raise CommandFailed(
        f"The {who} of stage {name!r} {how} without a usable answer{said}",
        exit_code=ended.code,
        cause="agent-failed",
    )


@contextmanager
def collecting(job: StageJob) -> Iterator[None]:
    """Bound on `kept_files`: a guest that sends a byte now and then makes progress, and never ends."""
    with anyio.move_on_after(COLLECT_S) as scope:
        yield
    if scope.cancelled_caught:
        raise LimitExceeded(
            f"Stage {job.box.name!r} was stopped: keeping what it left in {OUTPUT_DIR} took longer than "
            f"{COLLECT_S:g} s; have it leave less, or try again when this machine is less busy.",
            limit="time",
            value=COLLECT_S,
            unit="s",
        )


async def kept_files(box: Box, job: StageJob, emit: Emit) -> dict[str, InputFile]:
    """Keep the regular files below ``/workspace/output``, as the agent's user may read them; what else is there is
    left out with a notice. No link is followed.

    More than the bounds is an error, and not a part of them: who works on with a part would not know.

    Raises:
        LimitExceeded: more than `MAX_FILES` files or `MAX_BYTES`, or too long names; the message says which.
    """
    kept: dict[str, InputFile] = {}
    left_out, length = LeftOut(), 0
    entries = box.pack(OUTPUT_DIR, max_files=MAX_ENTRIES, max_bytes=MAX_BYTES, left_out=left_out)
    try:
        async with aclosing(entries):
            async for entry in entries:
                if entry.kind != "file":
                    continue
                length += len(json.dumps(entry.path, ensure_ascii=False).encode()) + 120
                if len(kept) >= MAX_FILES:
                    raise _too_many(job, f"{MAX_FILES} files", "files", MAX_FILES)
                if length > MAX_LIST_BYTES:
                    raise _too_many(job, f"{MAX_LIST_BYTES >> 10} KiB of file names", "bytes", MAX_LIST_BYTES)
                kept[entry.path] = await job.keep(_data(entry, entries))
                await emit(FileKept(path=entry.path, file=kept[entry.path]))
    except UserError as e:
        if e.cause not in {"not-found", "not-a-directory", "bad-request"}:
            raise
        if e.cause != "not-found":
            what = f"Nothing was kept of {OUTPUT_DIR}, which is no directory any more."
            await emit(Notice(level="warning", message=what))
    except LimitExceeded as e:
        if e.cause != "too-large":
            raise
        many = f"{MAX_BYTES >> 20} MiB" if e.limit == "bytes" else f"{MAX_ENTRIES} files and directories"
        raise _too_many(job, many, e.limit, MAX_BYTES if e.limit == "bytes" else MAX_ENTRIES) from e
    if left_out.count:
        what = f"Of {OUTPUT_DIR} was not kept: {left_out}; only regular files are."
        await emit(Notice(level="warning", message=what))
    return kept


async def _data(first: Packed, entries: AsyncIterator[Packed]) -> AsyncIterator[bytes]:
    """The bytes of the file that begins with `first`."""
    piece = first
    while True:
        if piece.data:
            yield piece.data
        if piece.last:
            return
        piece = await anext(entries)


def _too_many(job: StageJob, what: str, limit: str, value: int) -> LimitExceeded:
    return LimitExceeded(
        f"Stage {job.box.name!r} left more than {what} in {OUTPUT_DIR}; have it leave less, or one archive.",
        limit=f"output-{limit}",
        value=value,
        unit=limit,
        source="stage",
    )


def shortened(text: str, limit: int) -> str:
    """`text` in one line of at most `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
