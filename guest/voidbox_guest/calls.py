"""One request as its handler sees it: `Call`, and the typed error `OpError` that becomes its reply."""

from __future__ import annotations

import errno
from os import strerror

from wire.frames import DATA, END, EVENT, MAX_DATA, REPLY, WINDOW, encode, encode_credit, header
from wire.jsonlite import dumps
from wire.protocol import (
    BAD_REQUEST,
    BUSY,
    DENIED,
    EXISTS,
    IO,
    IS_DIRECTORY,
    MAX_PATH,
    NO_SPACE,
    NOT_DIRECTORY,
    NOT_EMPTY,
    NOT_FOUND,
    UNSUPPORTED,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .server import Server

_CODES = {
    errno.ENOENT: NOT_FOUND,
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.EROFS: DENIED,
    errno.EEXIST: EXISTS,
    errno.ENOTDIR: NOT_DIRECTORY,
    errno.EISDIR: IS_DIRECTORY,
    errno.ENOTEMPTY: NOT_EMPTY,
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EAGAIN: BUSY,
    errno.EMFILE: BUSY,
    errno.ENFILE: BUSY,
    errno.ENOMEM: BUSY,
    errno.ENAMETOOLONG: BAD_REQUEST,
    errno.ELOOP: BAD_REQUEST,
    errno.EINVAL: BAD_REQUEST,
    errno.ENOSYS: UNSUPPORTED,
    errno.EOPNOTSUPP: UNSUPPORTED,
}


class OpError(Exception):
    """A request cannot be done; becomes an error reply with `code`, `message` (made `printable`) and `extra`."""

    def __init__(self, code: str, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.code, self.message, self.extra = code, printable(message), extra


def printable(text: str) -> str:
    """`text` without what is no character: names of files and what comes out of memory are a program's to choose.

    The wire takes no half of a surrogate pair, which is what Python makes of bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def os_error(error: OSError, what: str) -> OpError:
    """The typed form of an errno; `what` names the object, e.g. a path."""
    number = error.errno or 0
    return OpError(_CODES.get(number, IO), f"{what}: {strerror(number)}", errno=number)


class Handler:
    """What a long-running operation may override. The defaults suit one that takes no input."""

    __slots__ = ()

    def on_data(self, channel: int, payload: bytes) -> None:
        """The host sent `payload` on `channel`, within its credit; `Call.grant` it back once consumed."""
        raise OpError(BAD_REQUEST, "this operation takes no data")

    def on_end(self, channel: int) -> None:
        """The host has no more data for `channel`."""

    def on_event(self, event: dict[str, Any]) -> None:
        """The host tells something; see `wire.protocol`."""
        raise OpError(BAD_REQUEST, "this operation takes no events")

    def on_room(self) -> None:
        """`Call.room` may have grown."""

    def on_cancel(self, hard: bool) -> None:
        """The host wants the end; the handler must still see to a reply, soon."""


class Call:
    """One open stream: its request's fields, its credit, and the only ways to answer."""

    __slots__ = ("_credit", "_granted", "_server", "closed", "handler", "request", "stream", "waiting")

    def __init__(self, server: Server, stream: int, request: dict[str, Any]) -> None:
        self._server = server
        self._credit = [WINDOW, WINDOW, WINDOW]
        self._granted = [WINDOW, WINDOW, WINDOW]
        self.stream = stream
        self.request = request
        self.handler: Handler | None = None
        self.closed = False
        self.waiting = False
        """True while the connection's queue is full and the handler is to be told when it is not."""

    # answers

    def reply(self, value: dict[str, Any]) -> None:
        """End the stream with a result."""
        self._end({"ok": value})

    def fail(self, error: OpError) -> None:
        """End the stream with an error."""
        self._end({"error": {"code": error.code, "message": error.message, **error.extra}})

    def _end(self, value: dict[str, Any]) -> None:
        if not self.closed:
            self.closed = True
            self._server.send(encode(REPLY, self.stream, dumps(value)))
            self._server.finished(self)

    def event(self, value: dict[str, Any]) -> None:
        """Send an event. Not covered by credit: keep them few."""
        if not self.closed:
            self._server.send(encode(EVENT, self.stream, dumps(value)))

    def room(self, channel: int) -> int:
        """How many bytes `send` takes now. At 0, `Handler.on_room` is called when there is more."""
        if self.closed:
            return 0
        if not self._server.has_room():
            self._server.wake_later(self)
            return 0
        return min(self._credit[channel], MAX_DATA)

    def send(self, channel: int, payload: bytes) -> None:
        """Send at most `room(channel)` bytes, and at least one."""
        self._credit[channel] -= len(payload)
        self._server.send(header(DATA, self.stream, len(payload), channel), payload)

    def end(self, channel: int) -> None:
        """Nothing more will be sent on `channel`."""
        if not self.closed:
            self._server.send(encode(END, self.stream, b"", channel))

    def grant(self, channel: int, count: int) -> None:
        """Give the host back the credit for `count` consumed bytes."""
        if not self.closed and count:
            self._granted[channel] += count
            self._server.send(encode_credit(self.stream, channel, count))

    def guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a callback of this call; an error in it becomes the reply."""
        return self._server.guarded(self, function, *args)

    # what the server tells us; False means the peer broke the protocol

    def credited(self, channel: int, count: int) -> bool:
        """The host granted `count` bytes."""
        self._credit[channel] += count
        return self._credit[channel] <= WINDOW

    def spent(self, channel: int, count: int) -> bool:
        """The host sent `count` bytes."""
        self._granted[channel] -= count
        return self._granted[channel] >= 0

    # typed access to the request's fields

    def text(self, key: str, default: str | None = None) -> str:
        """A string field without NUL."""
        value = self.request.get(key, default)
        if type(value) is not str or "\0" in value:
            raise OpError(BAD_REQUEST, f"{key} must be a string without NUL")
        return value

    def path(self, key: str, default: str | None = None) -> str:
        """An absolute path of bounded length."""
        value = self.text(key, default)
        if not value.startswith("/") or len(value.encode()) >= MAX_PATH:
            raise OpError(BAD_REQUEST, f"{key} must be an absolute path shorter than {MAX_PATH} bytes")
        return value

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """An integer field within bounds."""
        value = self.request.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise OpError(BAD_REQUEST, f"{key} must be an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number field within bounds."""
        value = self.request.get(key, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise OpError(BAD_REQUEST, f"{key} must be a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean field."""
        value = self.request.get(key, default)
        if type(value) is not bool:
            raise OpError(BAD_REQUEST, f"{key} must be true or false")
        return value


__all__ = ["Call", "Handler", "OpError", "os_error", "printable"]
