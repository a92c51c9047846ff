"""What the engine needs from the rooms below it, and nothing more.

The real ones are `voidbox_lab.box.Boxes`, `voidbox_lab.gateway.Gateway` and the adapters of
`voidbox_lab.agents`; tests put honest doubles here. Errors are those of the real ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from voidbox_lab.spec import BoxFacts, Policy, Skill, VoidBoxSpec
from voidbox_lab.spec.events import Body, Telemetry


class Exit(Protocol):
    """How a guest process ended."""

    @property
    def code(self) -> int | None: ...
    @property
    def signal(self) -> int | None: ...
    @property
    def timed_out(self) -> bool: ...


class Output(Protocol):
    """A stream of a guest process."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Process(Protocol):
    """A guest process that runs."""

    @property
    def stdout(self) -> Any: ...
    @property
    def stderr(self) -> Any: ...
    async def wait(self) -> Any: ...
    async def kill(self) -> None: ...


class Box(Protocol):
    """A box that runs."""

    @property
    def id(self) -> str: ...
    @property
    def facts(self) -> BoxFacts: ...
    async def start_exec(self, argv: Sequence[str], **options: Any) -> Any: ...
    async def put(self, src: Path | bytes, dst: str, **options: Any) -> Any: ...
    async def mkdir(self, path: str, **options: Any) -> Any: ...
    def telemetry(self, interval_s: float = 1.0) -> AsyncIterator[Telemetry]: ...
    async def close(self) -> None: ...


class Boxes(Protocol):
    """Opens boxes."""

    async def open(
        self,
        *,
        memory_mb: int,
        vcpus: int,
        image: str,
        agents: Sequence[str],
        gateway_socket: Path | None,
        policy: Policy,
    ) -> Any: ...


class Launch(Protocol):
    """How an agent CLI is started; see `voidbox_lab.agents`."""

    @property
    def argv(self) -> Sequence[str]: ...
    @property
    def env(self) -> Mapping[str, str]: ...
    @property
    def files(self) -> Mapping[str, bytes]: ...
    @property
    def stdin(self) -> bytes | None: ...


class Result(Protocol):
    """What an agent CLI said at its end."""

    @property
    def output(self) -> str | None: ...
    @property
    def is_error(self) -> bool: ...


class Parser(Protocol):
    """Turns the agent's standard output into events."""

    def feed(self, line: bytes) -> Sequence[Body]: ...
    def finish(self, exit_code: int | None) -> Result: ...


class Adapter(Protocol):
    """One agent CLI."""

    @property
    def name(self) -> str: ...
    @property
    def layer(self) -> str | None: ...
    def prepare(self, stage: VoidBoxSpec, skills: Sequence[Skill], base_url: str, token: str) -> Launch: ...
    def parser(self) -> Parser: ...
