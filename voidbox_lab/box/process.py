"""A command in a box: its streams, its end, and the end made of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from voidbox_lab.box.call import Call
from voidbox_lab.box.denials import Denials
from voidbox_lab.errors import ProviderError, UserError, VoidboxError
from voidbox_lab.spec.events import Denied
from voidbox_lab.wire.protocol import MAX_COLS, MAX_ROWS, STDERR, STDIN, STDOUT

KILL_S = 15.0
"""Seconds from SIGKILL to the guest's word that the command is over; the guest gives up after 5 itself."""


@dataclass(frozen=True)
class Pty:
    """A terminal's size in characters.

    Raises:
        UserError: no terminal can be that small or large.
    """

    rows: int = 24
    cols: int = 80

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= MAX_ROWS and 1 <= self.cols <= MAX_COLS):
            raise UserError(
                f"A terminal of {self.rows} rows and {self.cols} columns cannot be; give 1 to {MAX_ROWS} rows and "
                f"1 to {MAX_COLS} columns."
            )

    def fields(self) -> dict[str, int]:
        """As the guest wants it."""
        return {"rows": self.rows, "cols": self.cols}


class _ExitFields(BaseModel):
    """What the guest says of an end; checked, since a guest says it."""

    model_config = ConfigDict(strict=True, extra="ignore")
    code: int | None = Field(None, ge=0, le=255)
    signal: int | None = Field(None, ge=1, le=64)
    timed_out: bool = False
    oom: bool = False
    duration_s: float = Field(0.0, ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class Exit:
    """How a command ended: `code` or `signal`, one of them None."""

    code: int | None
    signal: int | None
    timed_out: bool
    """Its time ran out, and it was ended for that."""
    oom: bool
    """The guest kernel killed one of its processes for want of memory."""
    duration_s: float

    @classmethod
    def from_guest(cls, fields: object) -> Exit:
        """From the guest's fields.

        Raises:
            ProviderError: they are not those of an end.
        """
        try:
            checked = _ExitFields.model_validate(fields)
        except ValidationError:
            raise ProviderError("The guest sent a malformed exit status.", cause="protocol") from None
        if (checked.code is None) == (checked.signal is None):
            raise ProviderError("The guest sent an exit status that is none.", cause="protocol")
        return cls(**checked.model_dump())


@dataclass(frozen=True)
class Completed:
    """A finished command with all it wrote."""

    argv: tuple[str, ...]
    exit_code: int | None
    """None: ended by `signal`."""
    signal: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    oom: bool
    duration_s: float
    denied: tuple[Denied, ...] = ()
    """What the policy denied it and what it started."""


class Output(ByteReceiveStream):
    """Standard output or error. Iterating gives chunks as they come; reading slowly slows the command."""

    def __init__(self, call: Call, channel: int) -> None:
        self._call, self._channel = call, channel
        self._closed = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """At least one byte.

        Raises:
            anyio.EndOfStream: at the end.
            VoidboxError: the box is gone, or the command was killed; what came before is given out first.
        """
        if self._closed:
            raise anyio.ClosedResourceError
        data = await self._call.receive(self._channel, max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def aclose(self) -> None:
        """Read no more. The command blocks once it has written what its window takes."""
        self._closed = True


class Input(ByteSendStream):
    """Standard input. Closing it is the command's end of file."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._closed = False

    async def send(self, item: bytes) -> None:
        """Send all of `item`, waiting while the command does not read.

        Raises:
            anyio.BrokenResourceError: the command is over.
        """
        if self._closed:
            raise anyio.ClosedResourceError
        if not await self._call.send(STDIN, item):
            raise anyio.BrokenResourceError

    async def aclose(self) -> None:
        """End of file."""
        if not self._closed:
            self._closed = True
            self._call.end(STDIN)


class Process:
    """A running command. Leaving it as a context manager kills it if it still runs."""

    def __init__(
        self,
        call: Call,
        argv: tuple[str, ...],
        pid: int,
        stdin: bool,
        pty: Pty | None = None,
        denials: Denials | None = None,
    ) -> None:
        self._call = call
        self._taking = anyio.Lock()
        self._taken = 0
        self._denials = denials or Denials()
        self._over = False
        self.pty = pty
        """The size of its terminal, which `stdin` and `stdout` are then; `stderr` is empty."""
        self._exit: Exit | None = None
        self.argv = argv
        self.pid = pid
        """Its process id in the guest."""
        self.stdout = Output(call, STDOUT)
        self.stderr = Output(call, STDERR)
        self.stdin = Input(call) if stdin else None

    async def wait(self) -> Exit:
        """How it ended. Waits until then, without bound of its own: the command's time-out is the guest's.

        Output may be left to read afterwards. Raises:
            BoxLost: the box is gone.
            Cancelled: it was killed by `kill` and there is no exit status.
        """
        while self._exit is None:
            await self._take(self._taken)
        return self._exit

    async def denials(self) -> AsyncIterator[Denied]:
        """What the policy denies it and what it started, as it happens, until all of that is over.

        For one reader; and it is not over while its output is not read. Raises as `wait`.
        """
        while True:
            while (told := self._denials.pop()) is not None:
                yield told
            if self._over:
                return
            await self._take(self._taken)

    async def _take(self, seen: int) -> None:
        """Take one event in, unless another task has since the `seen`-th."""
        async with self._taking:
            if self._taken != seen:
                return
            event = await self._call.event()
            if event is None:
                ended = Exit.from_guest(await self._call.result())
                self._exit = self._exit or ended
                self._denials.end()
                self._over = True
            elif "exited" in event:
                self._exit = Exit.from_guest(event["exited"])
            elif "denied" in event:
                self._denials.take(event["denied"])
            self._taken += 1

    async def resize(self, rows: int, cols: int) -> None:
        """Give its terminal another size; the programs in front get SIGWINCH. Nothing happens once it has ended.

        Raises:
            UserError: it has no terminal, or none can have that size.
        """
        if self.pty is None:
            raise UserError("The command has no terminal to resize; start it with a pty.")
        self.pty = Pty(rows, cols)
        await self._call.tell(resize=self.pty.fields())

    def terminate(self) -> None:
        """SIGTERM to it and all it started, or SIGHUP if they have a terminal, SIGKILL after the guest's grace.
        Does not wait."""
        self._call.cancel(hard=False)

    async def kill(self, within_s: float = KILL_S) -> None:
        """SIGKILL to it and all it started; output not yet read is dropped. Idempotent.

        Returns once the guest has confirmed, or after `within_s`: then it is abandoned with its box.
        """
        if self._call.done:
            return
        self._call.abandon()
        with anyio.move_on_after(within_s, shield=True):
            try:
                await self._call.result()
            except VoidboxError:
                return

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()


async def started(call: Call, timeout_s: float, denials: Denials) -> int:
    """Wait until the command of `call` runs; its pid in the guest. What it is denied before goes to `denials`.

    Raises:
        UserError: there is no such program, directory or user, or policy denies it (cause ``denied``).
        LimitExceeded: not within `timeout_s`, or too many processes.
    """
    try:
        with anyio.fail_after(timeout_s):
            event = await call.event()
            while event is not None and "denied" in event:
                denials.take(event["denied"])
                event = await call.event()
    except TimeoutError:
        call.abandon()
        raise call.late(timeout_s) from None
    except BaseException:
        call.abandon()
        raise
    if event is None:
        await call.result()  # raises why
    pid = (event or {}).get("started")
    if type(pid) is not int or pid <= 0:
        call.abandon()
        raise ProviderError("The guest did not say that the command started.", cause="protocol")
    return pid


async def feed(call: Call, data: bytes) -> None:
    """Send `data` and the end of file; stops quietly when the command is over first."""
    if await call.send(STDIN, data):
        call.end(STDIN)
