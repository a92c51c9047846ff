"""Boxes in memory, for what is measured without a guest: they open, execute and close at once.

Doubles of `voidbox_lab.engine.ports` and of the daemon's backend. They keep what the real ones promise (a process
has outputs that end, a closed box runs nothing), count what was opened and closed, and cost as little as can be.
They know two commands: `TRUE` ends at once; what `ticks` gives writes numbered lines at a steady rate.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import ASGIApp

from voidbox_lab import agents
from voidbox_lab.agents import AgentResult
from voidbox_lab.agents.command import Command
from voidbox_lab.box.bundles import Packed
from voidbox_lab.engine import Host, StageJob
from voidbox_lab.engine.job import NoSession
from voidbox_lab.errors import BoxLost, Unavailable, UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import COMMAND, BoxFacts, Policy, VoidBoxSpec
from voidbox_lab.spec.events import AgentText, Body, Denied, Telemetry

TRUE = ("true",)
TICK_S = 0.01
"""How often a ticking command writes what is due by then."""
IMAGE = "sha256:" + "0" * 64


def ticks(rate: int, seconds: float) -> tuple[str, ...]:
    """The command that writes `rate` lines a second for `seconds`: each its own number, from 1."""
    return ("ticks", str(rate), str(seconds))


@dataclass(frozen=True)
class MockExit:
    """A process that ended well."""

    code: int | None = 0
    signal: int | None = None
    timed_out: bool = False
    oom: bool = False
    duration_s: float = 0.0


class MockProcess:
    """See `ports.Process`."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self._killed = anyio.Event()
        self._ended = anyio.Event()
        self.stdout, self.stderr = self._out(), _nothing()

    async def wait(self) -> MockExit:
        """See `ports.Process`."""
        await self._ended.wait()
        return MockExit(code=None, signal=9) if self._killed.is_set() else MockExit()

    async def denials(self) -> AsyncIterator[Denied]:
        """See `ports.Process`."""
        return
        yield

    async def kill(self, within_s: float = 0) -> None:
        """See `ports.Process`."""
        self._killed.set()
        self._ended.set()

    async def _out(self) -> AsyncIterator[bytes]:
        if self._argv[0] == "ticks":
            rate, seconds = int(self._argv[1]), float(self._argv[2])
            began, written = anyio.current_time(), 0
            while written < rate * seconds and not self._killed.is_set():
                due = min(int(rate * seconds), int(rate * (anyio.current_time() - began)))
                if due > written:
                    yield b"".join(b"%d\n" % n for n in range(written + 1, due + 1))
                    written = due
                await anyio.sleep(TICK_S)
        self._ended.set()


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


class MockBox:
    """See `ports.Box`."""

    def __init__(self, boxes: MockBoxes, memory_mb: int, vcpus: int) -> None:
        self._boxes = boxes
        self.id = f"vb-{boxes.opened:010x}"
        self.facts = BoxFacts(
            isolation="tcg",
            vsock="user",
            domain=self.id,
            image=IMAGE,
            memory_mb=memory_mb,
            vcpus=vcpus,
            boot_s=0.0,
            start="spare",
        )
        self._closed = False

    async def start_exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: bool | bytes | None = None,
        timeout_s: float | None = None,
    ) -> MockProcess:
        """See `ports.Box`. `UserError` for a command that it does not know."""
        if self._closed:
            raise BoxLost(f"Box {self.id} is closed.", cause="closed")
        if argv[0] not in {"true", "ticks"}:
            raise UserError(f"A box in memory cannot run {argv[0]!r}; it knows true and ticks.")
        return MockProcess(argv)

    async def put(self, src: Path | bytes, dst: str) -> int:
        """See `ports.Box`; nothing is kept, since nobody reads it."""
        return len(src) if isinstance(src, bytes) else (await anyio.Path(src).stat()).st_size

    async def apply(self, policy: Policy, places: Sequence[str] = ()) -> None:
        """See `ports.Box`; there is nothing to bind."""

    async def unpack(self, path: str, chunks: Iterator[bytes], **_options: Any) -> None:
        """See `ports.Box`; what is read is dropped."""
        for _chunk in chunks:
            pass

    async def pack(self, path: str, **_options: Any) -> AsyncGenerator[Packed, None]:
        """See `ports.Box`; there are no files."""
        return
        yield

    async def telemetry(self, interval_s: float = 1.0) -> AsyncIterator[Telemetry]:
        """See `ports.Box`: no samples, as there is no guest."""
        await anyio.sleep_forever()
        raise AssertionError("unreachable")
        yield

    async def close(self) -> None:
        """See `ports.Box`."""
        if not self._closed:
            self._closed = True
            self._boxes.closed += 1


class MockBoxes:
    """See `ports.Boxes`."""

    def __init__(self) -> None:
        self.opened = self.closed = 0

    async def open(self, *, memory_mb: int, vcpus: int, **_options: Any) -> MockBox:
        """See `ports.Boxes`."""
        self.opened += 1
        return MockBox(self, memory_mb, vcpus)


class _LinesApart(Command):
    """A command of which each line is an event: text of its own block, so that the journal joins none."""

    def parser(self) -> Any:
        """See `agents.contract.Adapter`."""
        return _LineParser()


class _LineParser:
    """Numbered text."""

    reads_lines = True

    def __init__(self) -> None:
        self._lines = 0

    def feed(self, line: bytes) -> list[Body]:
        """See `agents.contract.Parser`."""
        self._lines += 1
        return [AgentText(text=line.decode(), block=self._lines)]

    def finish(self, exit_code: int | None) -> AgentResult:
        """See `agents.contract.Parser`."""
        return AgentResult(f"{self._lines} lines", is_error=exit_code != 0)


@asynccontextmanager
async def no_session(_job: StageJob) -> AsyncIterator[NoSession]:
    """Nothing here has a model."""
    yield NoSession()


async def identity(_box: VoidBoxSpec) -> str:
    """What every box runs on: see `engine.cache.Identify`."""
    return IMAGE


def adapter(name: str) -> Any:
    """The real adapters, but for commands, whose lines are events of their own."""
    return _LinesApart() if name == COMMAND else agents.adapter(name)


def host(boxes: MockBoxes) -> Host:
    """What the engine needs, over `boxes`."""
    return Host(boxes=boxes, adapter=adapter, session=no_session)


class MockBackend(MockBoxes):
    """See `daemon.backend.Backend`."""

    key_names: Sequence[str] = ()
    spares = 0
    spare_mb = 0
    adapter = staticmethod(adapter)
    session = staticmethod(no_session)
    identity = staticmethod(identity)

    @property
    def gateway_app(self) -> ASGIApp:
        """Nobody has a token."""
        return Response(status_code=401)

    def add_keys(self, keys: Mapping[str, str]) -> None:
        """Nothing here has a model."""

    def check(self, box: VoidBoxSpec, *, priced: bool = False) -> None:
        """Commands alone."""
        if box.command is None:
            raise UserError("A daemon over boxes in memory runs commands only.")

    async def sweep(self) -> list[str]:
        """Nothing is left by anybody."""
        return []

    async def boxes(self) -> Any:
        """There are none to be looked at closer."""
        raise Unavailable("This daemon's boxes are in memory.")

    async def hypervisor(self) -> Any:
        """There is none."""
        raise Unavailable("This daemon's boxes are in memory.")


@asynccontextmanager
async def mock_backend(_settings: Settings) -> AsyncIterator[MockBackend]:
    """See `daemon.backend.MakeBackend`."""
    yield MockBackend()
