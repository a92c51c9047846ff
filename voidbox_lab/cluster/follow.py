"""What comes of a stage in a cluster, over all its attempts: its events, its answer, or why there is none."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import anyio
from anyio.abc import TaskGroup

from voidbox_lab.cluster.flight import Flight, News
from voidbox_lab.cluster.ticket import FILE_BYTES, MAX_ANSWER_CHARS
from voidbox_lab.engine.collect import MAX_BYTES
from voidbox_lab.engine.job import Emit, Moved, Result, StageJob
from voidbox_lab.errors import LimitExceeded, ProviderError, VoidboxError, from_dict
from voidbox_lab.spec import InputFile
from voidbox_lab.spec.events import BODY, ModelCall, Notice
from voidbox_lab.spec.skill import check_relative

MAX_LOST = 3
"""How often a stage is tried again after its worker was lost."""
MAX_RESENT = 20
"""How often a stage that Dask gave back is sent again, lost workers or not."""

MEMORY_BYTES = 4 << 20
"""Of a file that comes, so much is held in memory."""

log = logging.getLogger(__name__)
Supply = Callable[[Flight, StageJob, list[str]], Coroutine[Any, Any, None]]


class Follow:
    """What comes of one stage, over all its attempts."""

    def __init__(self, job: StageJob, emit: Emit, moved: Moved, began: Callable[[], Awaitable[None]]) -> None:
        self.job, self.emit = job, emit
        self._lost = self._resent = 0
        self._moved, self._began = moved, began
        self._pieces: list[str] = []
        self._files = Files(job)

    async def news(self, flight: Flight, supply: Supply, tasks: TaskGroup) -> Result | None:
        """The answer once it is there; None if the ticket came back and is to be sent again.

        Raises:
            VoidboxError: what the stage failed of.
        """
        async for news in flight.news:
            match news.what:
                case "begun":
                    self._pieces.clear()
                    self._files = Files(self.job)
                    await self._began()
                case "needs":
                    tasks.start_soon(supply, flight, self.job, [str(d) for d in json.loads(news.data)])
                case "moved":
                    if news.data in {"booting", "provisioning", "running", "collecting"}:
                        await self._moved(news.data)  # type: ignore[arg-type]  # one of them
                case "answer":
                    self._pieces.append(news.data)
                    if sum(map(len, self._pieces)) > MAX_ANSWER_CHARS:
                        raise _too_long(self.job)
                case "file":
                    await self._files.take(news.data)
                case "end":
                    end = json.loads(news.data)
                    if end["error"] is not None:
                        raise from_dict(end["error"])
                    return Result("".join(self._pieces), self._files.named(end["files"]))
                case "lost":
                    await self._count(news.data)
                case "held":
                    return None
                case "failed":
                    await self._failed(news.error, flight)
                    return None
                case _:
                    await self.late(news)
        return None

    async def late(self, news: News) -> None:
        """What also counts while an attempt is being ended: it was said, or paid for."""
        if news.what == "event":
            await self.emit(BODY.validate_json(news.data))
        elif news.what == "metered":
            self.job.metered(ModelCall.model_validate_json(news.data))

    async def _count(self, host: str) -> None:
        self._lost += 1
        if self._lost > MAX_LOST:
            raise _worker_lost(self.job, f"the last was {host}")
        what = f"Its worker on {host} was lost; the stage begins again elsewhere ({self._lost} of {MAX_LOST})."
        await self.emit(Notice(level="warning", message=what))

    async def _failed(self, error: BaseException | None, flight: Flight) -> None:
        """Dask gave the ticket back: for a reason of ours, or since workers were lost."""
        cause = error.cause if isinstance(error, VoidboxError) else None
        if isinstance(error, VoidboxError) and cause not in {"lease", "worker-closing"}:
            raise error
        if flight.attempt is not None and flight.link is not None:
            await self._count(flight.link.host)
        self._resent += 1
        if self._resent > MAX_RESENT:
            raise _worker_lost(self.job, "it did not even begin") from error
        log.warning("%s is sent again: %s", self.job.box.name, error)
        await anyio.sleep(0.5)


class Files:
    """What an attempt left, as it comes: piece by piece, file after file."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        self._part: IO[bytes] | None = None
        self._left = MAX_BYTES
        self._kept: dict[str, InputFile] = {}

    async def take(self, data: str) -> None:
        """A piece in Base64, or the end of a file."""
        if self._part is None:
            self._part = SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 - closed at the file's end
        piece = base64.b64decode(data)
        self._left -= len(piece)
        if self._left < 0:
            raise ProviderError("A worker sent more than a stage may leave.", cause="protocol")
        self._part.write(piece)
        if not piece:
            part, self._part = self._part, None
            with part:
                part.seek(0)
                file = await self._job.keep(_pieces(part))
            self._kept[file.digest] = file

    def named(self, files: Mapping[str, Any]) -> dict[str, InputFile]:
        """The files by their paths, as the worker says.

        Raises:
            ProviderError: one of them did not come.
        """
        found = {check_relative(path): InputFile.model_validate(file) for path, file in files.items()}
        if any(self._kept.get(file.digest) != file for file in found.values()):
            raise ProviderError("A file of the stage was damaged on its way; run it again.", cause="input-damaged")
        return found


async def _pieces(part: IO[bytes]) -> AsyncIterator[bytes]:
    while data := part.read(FILE_BYTES):
        yield data


def _too_long(job: StageJob) -> LimitExceeded:
    return LimitExceeded(
        f"Stage {job.box.name!r} answered with more than {MAX_ANSWER_CHARS} characters.",
        limit="output",
        value=MAX_ANSWER_CHARS,
        unit="characters",
    )


def _worker_lost(job: StageJob, what: str) -> ProviderError:
    return ProviderError(
        f"Stage {job.box.name!r} lost its worker {MAX_LOST + 1} times ({what}); see the workers' logs, and "
        "whether their hosts have the memory that they say they have.",
        cause="worker-lost",
    )
