"""The guest's end of a proxied connection: one request, parsed by h11, and its one answer. Not for deciding."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import h11
from anyio.abc import ByteStream

from voidbox_lab.gateway.egress.bounds import Bounds

CHUNK = 64 << 10
HEAD_CHUNK = 2 << 10
"""Small: h11 bounds a head only while it is incomplete."""
RESET = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
"""What reading from, or writing to, a side that is gone may raise."""


class BadRequest(Exception):
    """What came is no request for this proxy; the text is a sentence for the guest."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class Client:
    """HTTP/1.1 with a guest, which is hostile."""

    def __init__(self, stream: ByteStream, bounds: Bounds) -> None:
        self.stream, self._bounds = stream, bounds
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=bounds.head_bytes)

    async def request(self) -> h11.Request | None:
        """The request's head; None if the guest hung up without a word.

        Raises:
            BadRequest: it is malformed, too long, or not there in time.
        """
        with anyio.move_on_after(self._bounds.head_s):
            try:
                return await self._head()
            except h11.RemoteProtocolError as error:
                raise BadRequest(f"the request is malformed: {error}", error.error_status_hint) from None
        raise BadRequest(f"the request's head did not come within {self._bounds.head_s:g} s", 408)

    async def _head(self) -> h11.Request | None:
        event = await self._next(HEAD_CHUNK)
        if not isinstance(event, h11.Request):
            return None
        if event.http_version not in {b"1.0", b"1.1"}:
            raise BadRequest("the request is not HTTP/1.1", 505)
        names = [name for name, _ in event.headers]
        if b"content-length" in names and b"transfer-encoding" in names:
            # h11 knows what RFC 9112 section 6.3 says of it; whoever sends both means harm.
            raise BadRequest("the request has both Content-Length and Transfer-Encoding")
        if event.method == b"CONNECT":
            if {b"content-length", b"transfer-encoding"}.intersection(names):
                raise BadRequest("a CONNECT request has no content")
            await self._next()  # its end, after which h11 knows that the protocol may change
        return event

    async def _next(self, size: int = CHUNK) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            try:
                self._http.receive_data(await self.stream.receive(size))
            except anyio.EndOfStream:
                self._http.receive_data(b"")
        return event  # type: ignore[return-value]  # NEED_DATA is excluded above

    async def body(self) -> AsyncIterator[bytes]:
        """The request's content.

        Raises:
            BadRequest: it is malformed or cut off.
        """
        while True:
            if self._http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                event = await self._next()
            except h11.RemoteProtocolError as error:
                raise BadRequest(f"the request's content is malformed: {error}") from None
            if not isinstance(event, h11.Data):
                return
            yield bytes(event.data)

    async def send(self, event: h11.Event) -> None:
        """Send a part of the answer. Raises h11.LocalProtocolError for one that does not fit there."""
        if data := self._http.send(event):
            await self.stream.send(data)

    async def switch(self) -> bytes:
        """Answer a CONNECT with success; what the guest has sent already beyond its request."""
        await self.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        return bytes(self._http.trailing_data[0])

    @property
    def unanswered(self) -> bool:
        """Whether an answer can still be begun."""
        return self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}

    async def refuse(self, status: int, rule: str, reason: str) -> None:
        """Answer with `reason`, also in the status line, where curl shows it of a CONNECT; then let it be read."""
        if not self.unanswered:
            return
        body = f"{reason}\n".encode()
        line = reason.encode("ascii", "replace")[:500].translate(_PRINTABLE)
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", b"%d" % len(body)),
            (b"X-Voidbox-Rule", rule.encode("ascii", "replace")[:320].translate(_PRINTABLE)),
            (b"Connection", b"close"),
        ]
        await self.send(h11.Response(status_code=status, headers=headers, reason=line))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())
        await self.stream.send_eof()
        with anyio.move_on_after(self._bounds.linger_s), suppress(*RESET):
            # What is closed with unread data resets, and a reset may overtake the answer.
            for _ in range(64):
                await self.stream.receive(CHUNK)


_PRINTABLE = bytes(c if 0x20 <= c < 0x7F else 0x3F for c in range(256))
"""For bytes.translate: what may stand in a head (RFC 9112 section 4), others as question marks."""
