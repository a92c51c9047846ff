"""What an attempt at a stage is given, what it is given it by, and what comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from voidbox_lab.agents import Adapter
from voidbox_lab.engine.moves import Progress
from voidbox_lab.engine.ports import Boxes
from voidbox_lab.errors import ProviderError, VoidboxError
from voidbox_lab.spec import InputFile, Stage, VoidBoxSpec
from voidbox_lab.spec.events import Body, ModelCall

Emit = Callable[[Body], Awaitable[None]]
Moved = Callable[[Progress], Awaitable[None]]
Keep = Callable[[AsyncIterable[bytes]], Awaitable[InputFile]]
"""Keeps bytes as an artifact."""


class Session(Protocol):
    """A registered gateway session: the guest's URL of the gateway, and the token it shows there."""

    @property
    def base_url(self) -> str: ...
    @property
    def token(self) -> str: ...
    @property
    def socket(self) -> Path | None: ...
    def trouble(self) -> VoidboxError | None:
        """Why the latest model request failed on the host's side, if it did."""
        ...

    async def close(self) -> None:
        """End its requests, upstream first, and let no more in. Bounded; twice is allowed."""
        ...


@dataclass(frozen=True)
class NoSession:
    """The session of a stage that has no model: its box has no way out at all."""

    base_url: str = ""
    token: str = ""
    socket: Path | None = None

    def trouble(self) -> None:
        """Nothing was asked, so nothing failed."""

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Result:
    """What a stage brought: its answer, and the files that it left, by their paths, as artifacts."""

    text: str
    files: Mapping[str, InputFile] = field(default_factory=dict)


async def _nowhere(_data: AsyncIterable[bytes]) -> InputFile:
    raise ProviderError("Nothing keeps the files of this stage.", cause="internal")


@dataclass(frozen=True)
class StageJob:
    """A stage that may start now."""

    run: str
    stage: Stage
    inputs: Mapping[str, Path]
    """Path below ``/workspace/input`` to a verified file on the host: the stage's own, by their names, and those
    that stages before it left, as ``STAGE/PATH``."""
    upstream: Mapping[str, str]
    """Stage to its output, for every stage this one needs that has one."""
    files: Mapping[str, InputFile] = field(default_factory=dict)
    """The files of `inputs` by their digests."""
    blobs: Mapping[str, Path] = field(default_factory=dict)
    """Digest to a verified file on the host, for the files of its skills."""
    traceparent: str = ""
    """The context of its trace for what runs in the box (`voidbox_lab.spec.tracing`); "": none."""
    keep: Keep = field(default=_nowhere, compare=False)
    """Keeps what the stage leaves in ``/workspace/output``."""
    metered: Callable[[ModelCall], None] = field(default=lambda _call: None, compare=False)
    """Told of each model call of the stage when it has ended; must not block."""

    @property
    def box(self) -> VoidBoxSpec:
        """What is to run."""
        return self.stage.box


@dataclass(frozen=True)
class Host:
    """What a stage needs from this process."""

    boxes: Boxes
    adapter: Callable[[str], Adapter]
    """By name; raises `UserError` for one that is not known."""
    session: Callable[[StageJob], AbstractAsyncContextManager[Session]]
    """An async context manager of a `Session`: registered on entry, revoked on exit."""
