"""The guest's side of the control connection: multiplexing, credit, dispatch.

Runs on any connected stream socket: AF_VSOCK in a box, a socketpair in tests. The host is trusted to be the
host, not to be right: a malformed frame ends the connection, it never takes PID 1 down.
"""

from __future__ import annotations

import sys
from _collections import deque
from errno import EAGAIN

from wire.frames import CANCEL, CREDIT, DATA, END, EVENT, GOODBYE, REQUEST, Decoder, WireError, encode
from wire.jsonlite import loads
from wire.protocol import BAD_REQUEST, BUSY, INTERNAL, MAX_STREAMS

from .calls import Call, OpError, os_error
from .loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import Any

    from .loop import Loop

    Operation = Callable[[Call], dict[str, Any] | None]

HIGH = 512 * 1024
"""Bytes queued for the host above which no operation may produce more."""
LOW = 128 * 1024
"""Bytes queued below which operations that wait are woken."""
READ_SIZE = 256 * 1024
MAX_IOV = 64
MAX_FLUSH = 1 << 20
"""Bytes sent per round of the loop: a reader as fast as we are must not keep us from everything else."""


class Server:
    """Serves `operations` (name to function) on `sock` until the connection ends; then calls `on_close` once.

    An operation gets its `Call` and returns the reply, or None when it has set `call.handler` and will answer
    later. It may raise `OpError` or `OSError`.
    """

    def __init__(
        self, loop: Loop, sock: socket, operations: dict[str, Operation], on_close: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._operations = operations
        self._on_close = on_close
        self._decoder = Decoder()
        self._calls: dict[int, Call] = {}
        self._latest = 0
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = 0
        self._waiting: deque[Call] = deque()
        self._writing = False
        self._open = True

    def start(self, decoder: Decoder | None = None, frames: list[Any] | None = None) -> None:
        """Begin to serve; `decoder` and `frames` are what the handshake left over."""
        self._decoder = decoder or self._decoder
        self._sock.setblocking(False)
        self._loop.after_round = self._flush
        self._loop.watch(self._fd, READ, self._ready)
        self._take(frames or [])
        # The first round may wait long for its first event, and these answers must not.
        self._flush()

    # outgoing

    def send(self, *parts: bytes) -> None:
        """Queue bytes; they leave at the end of the loop's round."""
        if self._open:
            for part in parts:
                self._queue.append(part)
                self._queued += len(part)

    def has_room(self) -> bool:
        """Whether operations may produce output now."""
        return self._open and self._queued < HIGH

    def wake_later(self, call: Call) -> None:
        """Tell `call`'s handler when there is room again; in the order of asking, so nobody starves."""
        if not call.waiting:
            call.waiting = True
            self._waiting.append(call)

    def finished(self, call: Call) -> None:
        """`call` has replied."""
        self._calls.pop(call.stream, None)

    def _flush(self) -> None:
        queue = self._queue
        budget = MAX_FLUSH
        while self._open and queue and budget > 0:
            try:
                sent = self._sock.sendmsg([queue[i] for i in range(min(len(queue), MAX_IOV))])
            except OSError as error:
                if error.errno == EAGAIN:
                    break
                self._close(f"send: {error}")
                return
            self._queued -= sent
            budget -= sent
            while sent:
                first = queue[0]
                if len(first) > sent:
                    queue[0] = memoryview(first)[sent:]
                    break
                sent -= len(first)
                queue.popleft()
            if self._queued < LOW and self._waiting:
                self._wake()
        if self._open and bool(queue) is not self._writing:
            self._writing = bool(queue)
            self._loop.change(self._fd, READ | WRITE if self._writing else READ)

    def _wake(self) -> None:
        for _ in range(len(self._waiting)):
            if self._queued >= HIGH:
                return
            call = self._waiting.popleft()
            call.waiting = False
            if not call.closed and call.handler is not None:
                self.guarded(call, call.handler.on_room)

    # incoming

    def _ready(self, events: int) -> None:
        if events & ~WRITE:
            try:
                data = self._sock.recv(READ_SIZE)
            except OSError as error:
                if error.errno != EAGAIN:
                    self._close(f"receive: {error}")
                return
            if not data:
                self._close("the host closed the connection")
                return
            try:
                self._take(self._decoder.feed(data))
            except WireError as error:
                self._refuse(error.code)

    def _take(self, frames: list[Any]) -> None:
        for frame in frames:
            if not self._open:
                return
            if frame.kind == GOODBYE:
                self._close("the host said goodbye")
                return
            fault = self._frame(frame)
            if fault:
                self._refuse(fault)
                return

    def _frame(self, frame: Any) -> str:
        """Handle one frame; returns what is wrong with it, or nothing."""
        kind, stream = frame.kind, frame.stream
        if kind == REQUEST:
            if stream <= self._latest:
                return "stream-reused"
            self._latest = stream
            self._request(stream, frame.payload)
            return ""
        if kind not in (DATA, END, CANCEL, CREDIT, EVENT):
            return "unexpected-kind"
        if stream > self._latest:
            return "unknown-stream"
        call = self._calls.get(stream)
        if call is None or call.handler is None:
            return ""  # crossed our reply on the way
        if kind == CREDIT:
            if not call.credited(frame.flags, int.from_bytes(frame.payload, "big")):
                return "credit-overflow"
            self.guarded(call, call.handler.on_room)
        elif kind == DATA:
            if not call.spent(frame.flags, len(frame.payload)):
                return "credit-overrun"
            self.guarded(call, call.handler.on_data, frame.flags, frame.payload)
        elif kind == END:
            self.guarded(call, call.handler.on_end, frame.flags)
        elif kind == EVENT:
            self.guarded(call, call.handler.on_event, loads(frame.payload))
        else:
            self.guarded(call, call.handler.on_cancel, frame.flags == 1)
        return ""

    def _request(self, stream: int, payload: bytes) -> None:
        call = Call(self, stream, loads(payload))
        self._calls[stream] = call
        if len(self._calls) > MAX_STREAMS:
            call.fail(OpError(BUSY, f"more than {MAX_STREAMS} requests are open on this box"))
            return
        operation = self._operations.get(str(call.request.get("op")))
        if operation is None:
            call.fail(OpError(BAD_REQUEST, "the guest agent does not know this operation; build the image again"))
            return
        result = self.guarded(call, operation, call)
        if result is not None:
            call.reply(result)
        elif call.handler is None and not call.closed:
            call.fail(OpError(INTERNAL, "the operation did nothing"))

    def guarded(self, call: Call, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function`; whatever goes wrong in it becomes `call`'s error reply."""
        try:
            return function(*args)
        except OpError as error:
            call.fail(error)
        except OSError as error:
            call.fail(os_error(error, str(call.request.get("op"))))
        except (MemoryError, RecursionError, ValueError, TypeError, LookupError, AttributeError) as error:
            line = error.__traceback__.tb_lineno if error.__traceback__ else 0
            call.fail(OpError(INTERNAL, f"the guest agent failed: {type(error).__name__}: {error} (line {line})"))
        return None

    # the end

    def _refuse(self, reason: str) -> None:
        self.send(encode(GOODBYE, 0, reason.encode()[:512]))
        self._flush()
        self._close(reason)

    def _close(self, reason: str) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.forget(self._fd)
        self._loop.after_round = None
        self._sock.close()
        self._queue.clear()
        for call in list(self._calls.values()):
            call.closed = True
            if call.handler is not None:
                try:
                    call.handler.on_cancel(True)
                except (OpError, OSError) as error:
                    sys.stderr.write(f"cancel: {error}\n")
        self._calls.clear()
        self._on_close(reason)
