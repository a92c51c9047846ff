"""A worker's side: runs attempts in boxes of this host, and answers the daemons that they are for.

Knows nothing of Dask (`plugin` does). A daemon calls again and again (`exchange`) and is told what its attempts
said; as long as it calls, it is alive. One it has not heard of for `LEASE_S` seconds has its attempts ended.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
from anyio import CancelScope
from starlette.types import ASGIApp

from voidbox_lab import __version__
from voidbox_lab.agents import Adapter
from voidbox_lab.box.trouble import first_error
from voidbox_lab.cluster.inputs import Inputs
from voidbox_lab.cluster.outbox import Outbox
from voidbox_lab.cluster.place import own_place
from voidbox_lab.cluster.ticket import (
    EXCHANGE_S,
    FILE_BYTES,
    LEASE_S,
    PIECE_CHARS,
    REPLY_BYTES,
    Message,
    Ticket,
)
from voidbox_lab.engine import Host, StageJob, ports
from voidbox_lab.engine.job import Result, Session
from voidbox_lab.engine.moves import Progress
from voidbox_lab.engine.stage import run_stage
from voidbox_lab.errors import Cancelled, ProviderError, UserError, VoidboxError
from voidbox_lab.gateway.serve import serving_unix
from voidbox_lab.settings import Settings
from voidbox_lab.spec import InputFile, VoidBoxSpec
from voidbox_lab.spec.events import Body, BoxBooted, ModelCall

BATCH_S = 0.02
"""How long news waits for more of it."""

log = logging.getLogger(__name__)


class Backend(ports.Boxes, Protocol):
    """What a station needs below it: the part for stages of `voidbox_lab.daemon.backend`."""

    @property
    def gateway_app(self) -> ASGIApp: ...
    def check(self, box: VoidBoxSpec, *, priced: bool = False) -> None: ...
    async def identity(self, box: VoidBoxSpec) -> str: ...
    def adapter(self, name: str) -> Adapter: ...
    def session(self, job: StageJob) -> AbstractAsyncContextManager[Session]: ...
    async def sweep(self) -> list[str]: ...


MakeBackend = Callable[[Settings], AbstractAsyncContextManager[Backend]]


@dataclass(frozen=True)
class Reply:
    """What an exchange brings."""

    messages: list[Message]
    alive: list[str]
    """All attempts for this daemon that are on their way here; one that is not, and did not end, is lost."""
    valid: bool
    """False: a later exchange came in between, and this one says nothing."""


@dataclass(eq=False)
class _Attempt:
    name: str
    ticket: Ticket
    outbox: Outbox
    scope: CancelScope = field(default_factory=CancelScope)
    go: anyio.Event = field(default_factory=anyio.Event)
    """The daemon wants it."""
    left: bool = False
    """The daemon wants it no more."""
    lapsed: bool = False
    """The daemon is gone."""


class Station:
    """One per worker process. `serve` holds everything and closes it."""

    def __init__(self, make_backend: MakeBackend, settings: Settings, host: str) -> None:
        self._make_backend, self._settings = make_backend, settings
        self.host = host
        """What this host is called in events."""
        self._backend: Backend | None = None
        self._inputs: Inputs | None = None
        self._attempts: dict[str, _Attempt] = {}
        self._heard: dict[str, float] = {}
        self._news: dict[str, anyio.Event] = {}
        self._turn: Counter[str] = Counter()
        self._closing, self._empty = anyio.Event(), anyio.Event()
        self._empty.set()

    async def serve(self, ready: anyio.Event) -> None:
        """Hold the backend, with its gateway, until `close`; all boxes are closed when this returns."""
        with ExitStack() as places:
            settings = places.enter_context(own_place(self._settings))
            inputs = Inputs(
                settings.cache / "cluster-inputs" / f"{settings.runtime.parent.name}-{settings.runtime.name}"
            )
            places.callback(inputs.close)
            async with AsyncExitStack() as stack:
                backend = await stack.enter_async_context(self._make_backend(settings))
                served = serving_unix(backend.gateway_app, settings.runtime / "gateway.sock")
                await stack.enter_async_context(served)
                async with anyio.create_task_group() as tasks:
                    self._backend, self._inputs = backend, inputs
                    tasks.start_soon(self._watch)
                    tasks.start_soon(_sweep, backend)
                    ready.set()
                    await self._closing.wait()
                    tasks.cancel_scope.cancel()
                for attempt in self._attempts.values():
                    attempt.scope.cancel()
                await self._empty.wait()  # each is bounded by `run_stage`
                self._backend = None

    def close(self) -> None:
        """Begin to close: nothing new begins, and what is at work ends without a last word."""
        self._closing.set()
        for news in self._news.values():
            news.set()

    async def run(self, ticket: Ticket, tell: Callable[[str], None]) -> None:
        """One attempt at `ticket`, to its end and until its daemon has confirmed that.

        Args:
            tell: lets the daemon know the attempt's name, so that it calls here.

        Raises:
            ProviderError: the daemon does not call (cause ``lease``), or this worker is being closed.
        """
        if self._backend is None or self._closing.is_set():
            raise self._going()
        name = ticket.attempt
        attempt = _Attempt(name, ticket, Outbox(name, lambda: self._ring(ticket.daemon)))
        self._attempts[name] = attempt
        self._empty = anyio.Event()
        self._heard[ticket.daemon] = time.monotonic()
        attempt.outbox.post("begun", json.dumps({"host": self.host}))
        tell(name)
        try:
            with attempt.scope:
                await attempt.go.wait()
            if not attempt.scope.cancelled_caught:
                await self._carry_out(attempt)
        finally:
            del self._attempts[name]
            if not self._attempts:
                self._empty.set()
        if attempt.lapsed:
            raise ProviderError(
                f"The daemon of {ticket.run} was not heard of for {LEASE_S:g} s, so its stage was ended.",
                cause="lease",
            )

    async def exchange(self, daemon: str, confirmed: Mapping[str, int]) -> Reply:
        """What the attempts for `daemon` said since; waits up to `EXCHANGE_S` for something.

        Args:
            confirmed: attempt to the number of the last message that arrived; 1 is what lets an attempt begin.
        """
        self._turn[daemon] += 1
        turn = self._turn[daemon]
        self._ring(daemon)  # an earlier call that is still open is nobody's
        self._heard[daemon] = time.monotonic()
        for attempt in self._of(daemon):
            number = confirmed.get(attempt.name, 0)
            attempt.outbox.confirm(number)
            attempt.outbox.again()
            if number >= 1:
                attempt.go.set()
        with anyio.move_on_after(EXCHANGE_S):
            while self._turn[daemon] == turn and not self._closing.is_set():
                news = self._news.setdefault(daemon, anyio.Event())
                if any(a.outbox.fresh for a in self._of(daemon)):
                    await anyio.sleep(BATCH_S)
                    break
                await news.wait()
        self._heard[daemon] = time.monotonic()
        messages: list[Message] = []
        if self._turn[daemon] == turn:
            left = REPLY_BYTES
            for attempt in self._of(daemon):
                if left <= 0:
                    break
                taken = attempt.outbox.take(left)
                left -= sum(len(m[3]) for m in taken)
                messages += taken
        alive = [] if self._closing.is_set() else [a.name for a in self._of(daemon)]
        return Reply(messages, alive, self._turn[daemon] == turn)

    def leave(self, attempts: list[str]) -> None:
        """End these; what is open is closed, and their last word says so."""
        for name in attempts:
            if attempt := self._attempts.get(name):
                attempt.left = True
                attempt.scope.cancel()

    async def give(self, daemon: str, digest: str, offset: int, data: bytes, last: bool) -> bool:
        """Take a piece of an input; True once it is whole. See `Inputs.give`."""
        self._heard[daemon] = time.monotonic()
        if self._inputs is None:
            raise self._going()
        return await self._inputs.give(daemon, digest, offset, data, last=last)

    async def _carry_out(self, attempt: _Attempt) -> None:
        """From the daemon's word to its confirmation of the end."""
        outbox, error = attempt.outbox, None
        files: dict[str, Any] = {}
        try:
            with CancelScope() as attempt.scope:
                result = await self._work(attempt)
                for start in range(0, len(result.text), PIECE_CHARS):
                    outbox.post("answer", result.text[start : start + PIECE_CHARS])
                files = {path: file.model_dump() for path, file in result.files.items()}
            if attempt.scope.cancelled_caught:
                error = Cancelled("The stage was ended by its daemon.", cause="cancelled").to_dict()
        except Exception as e:
            error = _described(e, self.host)
        if self._closing.is_set():
            raise self._going()  # not the stage's end: it is tried elsewhere
        outbox.post("end", json.dumps({"error": error, "files": files}))
        with CancelScope() as attempt.scope:
            await outbox.confirmed()

    async def _work(self, attempt: _Attempt) -> Result:
        backend, inputs, ticket, outbox = self._backend, self._inputs, attempt.ticket, attempt.outbox
        assert backend is not None, "looked at before"
        assert inputs is not None, "comes and goes with the backend"
        await self._agree(ticket, backend)
        beside = [file for skill in ticket.stage.box.procedures for file in skill.files.values()]
        digests = {f.digest for f in (*ticket.files.values(), *ticket.upstream.values(), *beside)}
        with inputs.held(digests):
            if missing := inputs.missing(sorted(digests)):
                outbox.post("needs", json.dumps(missing))
                await inputs.come(digests)

            def metered(call: ModelCall) -> None:
                outbox.post("metered", call.model_dump_json())

            async def emit(body: Body) -> None:
                if isinstance(body, BoxBooted):
                    body = BoxBooted(facts=body.facts.model_copy(update={"host": self.host}))
                await outbox.emit(body)

            async def moved(state: Progress) -> None:
                outbox.post("moved", state)

            job = StageJob(
                ticket.run,
                ticket.stage,
                inputs={name: inputs.path(f.digest) for name, f in ticket.files.items()},
                files=ticket.files,
                blobs={f.digest: inputs.path(f.digest) for f in beside},
                traceparent=ticket.traceparent,
                keep=lambda data: _sent(outbox, data),
                upstream={n: await _text(inputs, f.digest) for n, f in ticket.upstream.items()},
                metered=metered,
            )
            host = Host(boxes=backend, adapter=backend.adapter, session=backend.session)
            return await run_stage(job, host, emit, moved)

    async def _agree(self, ticket: Ticket, backend: Backend) -> None:
        """That this worker would run what the daemon takes it to run."""
        if ticket.version != __version__:
            raise ProviderError(
                f"The worker on {self.host} is voidbox-lab {__version__} and the daemon is {ticket.version}; "
                "install the same release on both.",
                cause="version",
            )
        try:
            backend.check(ticket.stage.box, priced=ticket.stage.box.budget.usd is not None)
        except UserError as e:
            raise UserError(f"On the worker {self.host}: {e.message}", cause=e.cause) from e
        if ticket.identity is None:
            return
        identity = await backend.identity(ticket.stage.box)
        if identity != ticket.identity:
            raise ProviderError(
                f"The worker on {self.host} has another image {ticket.stage.box.image!r}, agent or script than "
                "the daemon, so its results would not be the same; copy the daemon's cache and scripts there.",
                cause="image-differs",
            )

    async def _watch(self) -> None:
        """End the attempts of daemons that are gone."""
        while True:
            await anyio.sleep(LEASE_S / 8)
            now = time.monotonic()
            gone = {daemon for daemon, at in self._heard.items() if now - at > LEASE_S}
            for attempt in self._attempts.values():
                if attempt.ticket.daemon in gone and not attempt.lapsed:
                    log.warning("%s is ended: its daemon is gone", attempt.name)
                    attempt.lapsed = True
                if attempt.lapsed:
                    attempt.scope.cancel()  # of what it is at now: its work first, then its wait to be confirmed
            for daemon in gone - {a.ticket.daemon for a in self._attempts.values()}:
                self._heard.pop(daemon, None)
                self._turn.pop(daemon, None)
                self._news.pop(daemon, None)
                if self._inputs is not None:
                    self._inputs.forget(daemon)

    def _of(self, daemon: str) -> list[_Attempt]:
        return [a for a in self._attempts.values() if a.ticket.daemon == daemon]

    def _going(self) -> ProviderError:
        return ProviderError(f"The worker on {self.host} is being closed.", cause="worker-closing")

    def _ring(self, daemon: str) -> None:
        if news := self._news.pop(daemon, None):
            news.set()


async def _sweep(backend: Backend) -> None:
    try:
        if removed := await backend.sweep():
            log.warning("swept what a dead process left: %s", ", ".join(removed))
    except VoidboxError as e:
        log.info("nothing swept: %s", e)


async def _sent(outbox: Outbox, data: AsyncIterable[bytes]) -> InputFile:
    """Have the daemon keep a file."""
    sha, size = hashlib.sha256(), 0
    async for chunk in data:
        sha.update(chunk)
        size += len(chunk)
        for start in range(0, len(chunk), FILE_BYTES):
            await outbox.room()
            outbox.post("file", base64.b64encode(chunk[start : start + FILE_BYTES]).decode())
    outbox.post("file", "")
    return InputFile(digest=f"sha256:{sha.hexdigest()}", size=size)


async def _text(inputs: Inputs, digest: str) -> str:
    data: bytes = await anyio.Path(inputs.path(digest)).read_bytes()
    return data.decode(errors="replace")


def _described(error: Exception, host: str) -> dict[str, Any]:
    """One of the five kinds from whatever a stage raised."""
    found: BaseException = first_error(error) if isinstance(error, BaseExceptionGroup) else error
    if isinstance(found, VoidboxError):
        return found.to_dict()
    log.error("a stage failed unexpectedly", exc_info=found)
    what = f"{type(found).__name__}: {found}"[:300]
    return ProviderError(
        f"The stage failed unexpectedly on {host} ({what}); please report it.", cause="internal"
    ).to_dict()
