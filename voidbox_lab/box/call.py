"""One request on the control connection as the host sees it: its reply, events and data, all bounded.

Not for any particular operation: `process`, `files` and `box` give the bytes a meaning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import anyio

from voidbox_lab.box.trouble import from_guest
from voidbox_lab.errors import LimitExceeded, ProviderError, VoidboxError
from voidbox_lab.wire.frames import (
    CANCEL,
    DATA,
    END,
    EVENT,
    MAX_DATA,
    WINDOW,
    Frame,
    WireError,
    encode,
    encode_credit,
)
from voidbox_lab.wire.jsonlite import dumps, loads

MAX_EVENTS = 64
"""Events kept for a slow consumer; older ones are dropped, for they are samples and announcements."""
CHANNELS = range(3)


class Call:
    """An open stream. One task may read each channel, one may write each; any number may await the result."""

    def __init__(
        self, stream: int, op: str, enqueue: Callable[[bytes], None], room: Callable[[], anyio.Event | None]
    ) -> None:
        self.stream = stream
        self.op = op
        self._enqueue, self._room = enqueue, room
        self._changed = anyio.Event()
        self._events: deque[bytes] = deque(maxlen=MAX_EVENTS)
        self._buffers = [bytearray() for _ in CHANNELS]
        self._allowance = [WINDOW for _ in CHANNELS]
        self._consumed = [0 for _ in CHANNELS]
        self._credit = [WINDOW for _ in CHANNELS]
        self._ended = [False for _ in CHANNELS]
        self._reply: dict[str, Any] | None = None
        self._error: VoidboxError | None = None
        self._abandoned = False

    @property
    def done(self) -> bool:
        """The guest has replied, or never will."""
        return self._reply is not None or self._error is not None

    # for the caller

    async def result(self) -> dict[str, Any]:
        """The reply's fields.

        Raises:
            VoidboxError: what the guest or the loss of the box made of it.
        """
        while not self.done:
            await self._changed.wait()
        if self._error is not None:
            raise self._error.with_traceback(None)
        assert self._reply is not None
        return self._reply

    async def event(self) -> dict[str, Any] | None:
        """The next event's fields; None when the call is done and no event is left."""
        while not self._events:
            if self.done:
                return None
            await self._changed.wait()
        try:
            return loads(self._events.popleft())
        except WireError as error:
            raise ProviderError(f"The guest sent a malformed event ({error.code}).", cause="protocol") from None

    async def receive(self, channel: int, max_bytes: int = MAX_DATA) -> bytes:
        """Up to `max_bytes` of what the guest sent on `channel`; ``b""`` at its end.

        Raises:
            VoidboxError: the call failed; what came before is given out first.
        """
        buffer = self._buffers[channel]
        while not buffer:
            if self._ended[channel] or self._reply is not None:
                return b""
            if self._error is not None:
                raise self._error.with_traceback(None)
            await self._changed.wait()
        data = bytes(buffer[:max_bytes])
        del buffer[: len(data)]
        self._consumed[channel] += len(data)
        # Half a window at a time: fewer frames, and the guest never runs dry while we read on.
        if self._consumed[channel] >= WINDOW // 2 and not self._ended[channel] and not self.done:
            self._enqueue(encode_credit(self.stream, channel, self._consumed[channel]))
            self._allowance[channel] += self._consumed[channel]
            self._consumed[channel] = 0
        return data

    async def send(self, channel: int, data: bytes | memoryview) -> bool:
        """Send `data`, waiting for credit; False if the call ended first (its result says why)."""
        with memoryview(data) as view:
            offset = 0
            while offset < len(view):
                if self.done:
                    return False
                count = min(self._credit[channel], MAX_DATA, len(view) - offset)
                if not count:
                    await self._changed.wait()
                    continue
                full = self._room()
                if full is not None:
                    await full.wait()
                    continue
                self._credit[channel] -= count
                self._enqueue(encode(DATA, self.stream, bytes(view[offset : offset + count]), channel))
                offset += count
        return not self.done

    async def tell(self, **fields: Any) -> None:
        """Send an event, waiting while the connection is full; nothing happens once the call is done."""
        while not self.done:
            full = self._room()
            if full is None:
                self._enqueue(encode(EVENT, self.stream, dumps(fields)))
                return
            await full.wait()

    def end(self, channel: int) -> None:
        """Nothing more will be sent on `channel`."""
        if not self.done:
            self._enqueue(encode(END, self.stream, b"", channel))

    def cancel(self, *, hard: bool) -> None:
        """Ask the guest for the end: SIGTERM and patience, or `hard`."""
        if not self.done:
            self._enqueue(encode(CANCEL, self.stream, b"", 1 if hard else 0))

    def abandon(self) -> None:
        """Nobody waits any more: cancel hard, and drop what may still come."""
        if not self.done and not self._abandoned:
            self.cancel(hard=True)
        self._abandoned = True
        self._events.clear()
        for buffer in self._buffers:
            buffer.clear()

    async def bounded_result(self, timeout_s: float) -> dict[str, Any]:
        """`result`, within `timeout_s`; the call is abandoned if it does not come, or on cancellation.

        Raises:
            LimitExceeded: limit ``time``.
            VoidboxError: as `result`.
        """
        try:
            with anyio.fail_after(timeout_s):
                return await self.result()
        except TimeoutError:
            raise self.late(timeout_s) from None
        finally:
            self.abandon()

    def late(self, timeout_s: float) -> LimitExceeded:
        """The error for a guest that did not answer in time."""
        return LimitExceeded(
            f"The guest did not answer {self.op!r} within {timeout_s:g} s; the box may be overloaded or hung.",
            limit="time",
            value=timeout_s,
            unit="s",
        )

    # for the connection

    def take(self, frame: Frame) -> None:
        """A REPLY, EVENT, DATA, END or CREDIT for this call.

        Raises:
            WireError: the guest broke the protocol.
        """
        kind, channel = frame.kind, frame.flags
        if kind == DATA:
            self._allowance[channel] -= len(frame.payload)
            if self._allowance[channel] < 0:
                raise WireError("credit-overrun", "the guest sent more than it had credit for")
            if self._ended[channel]:
                raise WireError("data-after-end", "the guest sent data after its end")
            if not self._abandoned:
                self._buffers[channel] += frame.payload
        elif kind == END:
            self._ended[channel] = True
        else:
            self._credit[channel] += int.from_bytes(frame.payload, "big")
            if self._credit[channel] > WINDOW:
                raise WireError("credit-overflow", "the guest granted more than a window")
        self.wake()

    def take_event(self, payload: bytes) -> None:
        """An event, parsed only when somebody asks for it."""
        if not self._abandoned:
            self._events.append(payload)
            self.wake()

    def take_reply(self, payload: bytes) -> None:
        """The end of the call.

        Raises:
            WireError: the payload is not a reply.
        """
        reply = loads(payload)
        ok, error = reply.get("ok"), reply.get("error")
        if isinstance(ok, dict):
            self._reply = ok
        elif isinstance(error, dict):
            self._error = from_guest(self.op, error)
        else:
            raise WireError("bad-reply", "a reply has neither result nor error")
        self.wake()

    def fail(self, error: VoidboxError) -> None:
        """The connection is gone."""
        if not self.done:
            self._error = error
            self.wake()

    def wake(self) -> None:
        """Let every waiter look again."""
        self._changed.set()
        self._changed = anyio.Event()
