"""The host's side of the control connection: one reader, one writer, any number of calls.

Everything that comes is hostile. A frame that breaks the protocol ends the connection with a reason; what may be
buffered is bounded per call by credit and per connection by the number of calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from voidbox_lab.box.call import Call
from voidbox_lab.box.trouble import clean
from voidbox_lab.errors import BoxLost, LimitExceeded, ProviderError, VoidboxError
from voidbox_lab.wire import frames as f
from voidbox_lab.wire.handshake import HandshakeError, HostSide
from voidbox_lab.wire.jsonlite import dumps
from voidbox_lab.wire.protocol import HANDSHAKE_S, MAX_STREAMS

HIGH = 1 << 20
"""Bytes waiting to be sent above which senders of data wait."""
BATCH = 256 * 1024
READ_SIZE = 256 * 1024
REQUEST_S = 30.0
"""Seconds a plain request may take unless the caller says otherwise."""


class ByteStream(Protocol):
    """What is needed of a stream; `voidbox_lab.vsock.Stream` is one."""

    async def receive(self, max_bytes: int = ...) -> bytes: ...
    async def send(self, data: bytes) -> None: ...
    async def aclose(self) -> None: ...


async def shake_hands(
    stream: ByteStream, secret: bytes, *, timeout_s: float = HANDSHAKE_S
) -> tuple[f.Decoder, list[f.Frame]]:
    """Let the guest prove itself, and prove the host to it.

    Returns the decoder and the frames that followed. The caller closes `stream` on an error.

    Raises:
        ProviderError: wrong secret, wrong protocol, garbage (cause ``handshake``).
        LimitExceeded: not done within `timeout_s`.
    """
    side, decoder = HostSide(secret), f.Decoder()
    try:
        with anyio.fail_after(timeout_s):
            while True:
                data = await stream.receive(4096)
                if not data:
                    raise ProviderError("The guest hung up during the handshake.", cause="handshake")
                frames = decoder.feed(data)
                while frames:
                    await stream.send(side.receive(frames.pop(0)))
                    if side.done:
                        return decoder, frames
    except TimeoutError:
        raise LimitExceeded(
            f"The guest did not finish the handshake within {timeout_s:g} s.",
            limit="time",
            value=timeout_s,
            unit="s",
        ) from None
    except HandshakeError as error:
        if error.reject:
            with anyio.move_on_after(1.0):
                await stream.send(error.reject)
        raise ProviderError(f"The handshake failed: {clean(error)}.", cause="handshake") from None
    except (f.WireError, anyio.BrokenResourceError) as error:
        raise ProviderError(f"The handshake failed: {clean(error) or 'cut off'}.", cause="handshake") from None


class Connection:
    """Calls over one stream. `run` must be running somewhere for anything to move."""

    def __init__(
        self, stream: ByteStream, decoder: f.Decoder | None = None, frames: Iterable[f.Frame] = ()
    ) -> None:
        self._stream = stream
        self._decoder = decoder or f.Decoder()
        self._early = list(frames)
        self._calls: dict[int, Call] = {}
        self._latest = 0
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._queue_filled = anyio.Event()
        self._queue_drained = anyio.Event()
        self._failure: VoidboxError | None = None
        self._tasks: TaskGroup | None = None
        self.ended = anyio.Event()
        """Set when `run` has returned."""

    @property
    def open_calls(self) -> int:
        """Calls the guest has not replied to."""
        return len(self._calls)

    async def run(self) -> str:
        """Move frames until the connection ends; returns why. Does not raise, does not fail the calls: whoever
        runs it knows more about the reason and calls `fail`."""
        reason = "closed"
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._write)
                reason = await self._read()
                tasks.cancel_scope.cancel()
        except* (anyio.BrokenResourceError, anyio.ClosedResourceError, VoidboxError):
            reason = "the connection broke"
        finally:
            self._tasks = None
            self.ended.set()
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await self._stream.aclose()
        return reason

    def fail(self, error: VoidboxError) -> None:
        """Every open call, and every later one, raises `error`. The first failure stays."""
        if self._failure is None:
            self._failure = error
        for call in self._calls.values():
            call.fail(self._failure)
        self._calls.clear()
        self._queue_drained.set()

    def open(self, op: str, **fields: Any) -> Call:
        """Send a request; the `Call` is for its answers.

        Raises:
            VoidboxError: the box is gone, or `MAX_STREAMS` calls are open (limit ``processes``).
        """
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if len(self._calls) >= MAX_STREAMS:
            raise LimitExceeded(
                f"{MAX_STREAMS} requests are open on this box; wait for some to end.",
                limit="processes",
                value=MAX_STREAMS,
            )
        try:
            payload = dumps({"op": op, **fields})
        except f.WireError as error:
            raise LimitExceeded(
                f"The request {op!r} does not fit one frame: {error}.",
                limit="frame",
                value=f.MAX_JSON,
                unit="bytes",
            ) from None
        self._latest += 1
        call = Call(self._latest, op, self._enqueue, self._full)
        self._calls[call.stream] = call
        self._enqueue(f.encode(f.REQUEST, call.stream, payload))
        return call

    async def request(self, op: str, *, within_s: float = REQUEST_S, **fields: Any) -> dict[str, Any]:
        """`open` and await the reply.

        Raises:
            LimitExceeded: not within `within_s` seconds.
            VoidboxError: what the guest or the loss of the box made of it.
        """
        return await self.open(op, **fields).bounded_result(within_s)

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run `function` beside the pumps; it ends with the connection, and must not raise anything but a
        `VoidboxError` of its call.

        Raises:
            BoxLost: the connection has ended.
        """
        if self._tasks is None:
            raise self._failure or BoxLost("The control connection has ended.", cause="guest-agent-died")
        self._tasks.start_soon(function, *args)

    # sending

    def _enqueue(self, data: bytes) -> None:
        if not self.ended.is_set():
            self._queue.append(data)
            self._queued += len(data)
            self._queue_filled.set()

    def _full(self) -> anyio.Event | None:
        return self._queue_drained if self._queued >= HIGH else None

    async def _write(self) -> None:
        queue = self._queue
        while True:
            while not queue:
                self._queue_filled = anyio.Event()
                await self._queue_filled.wait()
            batch, size = [queue.popleft()], 0
            size = len(batch[0])
            while queue and size < BATCH:
                size += len(queue[0])
                batch.append(queue.popleft())
            await self._stream.send(batch[0] if len(batch) == 1 else b"".join(batch))
            self._queued -= size
            if self._queued < HIGH:
                self._queue_drained.set()
                self._queue_drained = anyio.Event()

    # receiving

    async def _read(self) -> str:
        try:
            for frame in self._early:
                self._take(frame)
            while True:
                data = await self._stream.receive(READ_SIZE)
                if not data:
                    return "the guest closed it" + (" in the middle of a frame" if self._decoder.pending else "")
                for frame in self._decoder.feed(data):
                    if frame.kind == f.GOODBYE:
                        return f"the guest agent ended it: {clean(frame.payload.decode('utf-8', 'replace'))}"
                    self._take(frame)
        except f.WireError as error:
            return f"it broke the protocol: {error.code}, {error}"
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return "the connection broke"

    def _take(self, frame: f.Frame) -> None:
        call = self._calls.get(frame.stream)
        if call is None or frame.kind not in (f.REPLY, f.EVENT, f.DATA, f.END, f.CREDIT):
            raise f.WireError("unexpected", f"kind {frame.kind} on stream {frame.stream}, which is not open")
        if frame.kind == f.REPLY:
            del self._calls[frame.stream]
            try:
                call.take_reply(frame.payload)
            except f.WireError as error:
                call.fail(ProviderError(f"The guest sent a malformed reply ({error.code}).", cause="protocol"))
                raise
        elif frame.kind == f.EVENT:
            call.take_event(frame.payload)
        else:
            call.take(frame)
