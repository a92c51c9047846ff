"""What the engine needs from a box and from whoever opens one, and nothing more.

The real ones are `voidbox_lab.box.Box` and `voidbox_lab.box.Boxes`; tests put honest doubles here. Errors
are those of the real ones.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Protocol

from voidbox_lab.box import folders
from voidbox_lab.spec import BoxFacts, Policy, Rootfs
from voidbox_lab.spec.events import Body, Denied, Telemetry
from voidbox_lab.spec.volume import Mount


class Exit(Protocol):
    """How a guest process ended."""

    @property
    def code(self) -> int | None: ...
    @property
    def signal(self) -> int | None: ...
    @property
    def timed_out(self) -> bool: ...
    @property
    def oom(self) -> bool: ...
    @property
    def duration_s(self) -> float: ...


class Process(Protocol):
    """A guest process that runs. Its outputs are to be read to their end."""

    @property
    def stdout(self) -> AsyncIterable[bytes]: ...
    @property
    def stderr(self) -> AsyncIterable[bytes]: ...
    async def wait(self) -> Exit: ...
    def denials(self) -> AsyncIterator[Denied]: ...
    async def kill(self, within_s: float = ...) -> None: ...


class Box(folders.Box, Protocol):
    """A box that runs."""

    @property
    def id(self) -> str: ...
    @property
    def facts(self) -> BoxFacts: ...
    async def start_exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = ...,
        stdin: bool | bytes | None = None,
        timeout_s: float | None = None,
    ) -> Process: ...
    async def put(self, src: Path | bytes, dst: str) -> int: ...
    def telemetry(self, interval_s: float = ...) -> AsyncIterator[Telemetry]: ...
    async def close(self) -> None: ...


class Boxes(Protocol):
    """Opens boxes."""

    async def open(
        self,
        *,
        memory_mb: int,
        vcpus: int,
        rootfs: Rootfs,
        gateway_socket: Path | None,
        policy: Policy,
        volumes: Sequence[Mount] = (),
        egress: Callable[[Body], Awaitable[None]] | None = None,
    ) -> Box:
        """`egress` is told of each connection that left the box, or was to, before the box is closed."""
        ...
