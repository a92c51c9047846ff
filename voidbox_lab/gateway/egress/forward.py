"""A plain ``http://`` request passed on: written anew from what was parsed, so that nothing can hide in it.

RFC 9110 section 7.6 says what an intermediary leaves out and adds. Each connection carries one request.
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio
import h11
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint_if_cancelled

from voidbox_lab.gateway.egress.account import Account
from voidbox_lab.gateway.egress.bounds import Bounds
from voidbox_lab.gateway.egress.client import CHUNK, RESET, BadRequest, Client
from voidbox_lab.gateway.egress.targets import Target

HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"proxy-authentication-info"),
        # Answered here, since the content is not awaited before the request is sent on.
        b"expect",
    }
)
VIA = b"1.1 voidbox"
Headers = list[tuple[bytes, bytes]]


class BadResponse(Exception):
    """The other side does not speak HTTP/1.1; the text is a sentence for the guest."""


async def forward(
    request: h11.Request,
    target: Target,
    path: str,
    client: Client,
    server: ByteStream,
    account: Account,
    bounds: Bounds,
) -> None:
    """Send `request` on to `server` and its response back.

    Raises:
        BadRequest: the request's content is malformed.
        BadResponse: the response is.
    """
    wire = _Server(server, account, bounds)
    # RFC 9112 section 3.2.2: the Host that was sent is ignored for the one of the target.
    host = str(target) if target.port != 80 else str(target).rpartition(":")[0]
    headers = [(b"host", host.encode()), *passed_on(request.headers, but=b"host"), (b"connection", b"close")]
    if any(name == b"transfer-encoding" for name, _ in request.headers):
        headers.append((b"transfer-encoding", b"chunked"))
    await wire.send(h11.Request(method=request.method, target=path.encode(), headers=headers))
    failed: list[BadRequest] = []
    async with anyio.create_task_group() as tasks:

        async def upload() -> None:
            try:
                async for data in client.body():
                    await wire.send(h11.Data(data=data))
                await wire.send(h11.EndOfMessage())
            except BadRequest as error:
                failed.append(error)
                tasks.cancel_scope.cancel()
            except RESET:
                return  # it may have answered before it had read everything

        tasks.start_soon(upload)
        trouble = await _answer(wire, client, account)
        tasks.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if trouble is not None:
        raise trouble


def passed_on(headers: Iterable[tuple[bytes, bytes]], but: bytes = b"") -> Headers:
    """End-to-end headers, and Via: none of this connection's own, those that Connection names included."""
    given = list(headers)
    named = {
        token.strip().lower()
        for name, value in given
        if name == b"connection"
        for token in value.split(b",")
        # What frames the content is not an option of the connection, whatever it says.
        if token.strip().lower() != b"content-length"
    }
    kept = [(n, v) for n, v in given if n not in HOP_BY_HOP and n not in named and n != but]
    return [*kept, (b"via", VIA)]


class _Server:
    """HTTP/1.1 with the other side."""

    def __init__(self, stream: ByteStream, account: Account, bounds: Bounds) -> None:
        self._stream, self._account = stream, account
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=bounds.answer_bytes)

    async def send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self._account.sent(len(data))
            await checkpoint_if_cancelled()
            await self._stream.send(data)

    async def next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            try:
                data = await self._stream.receive(CHUNK)
            except anyio.EndOfStream:
                data = b""
            self._account.received(len(data))
            await checkpoint_if_cancelled()
            self._http.receive_data(data)
        return event


async def _answer(wire: _Server, client: Client, account: Account) -> BadResponse | None:
    """Pass the response on; what was wrong with it."""
    try:
        while True:
            match event := await wire.next():
                case h11.InformationalResponse(status_code=code) if code != 101:
                    continue  # of no use to whoever has been told to go on already
                case h11.Response():
                    headers = _unframed(event)
                    head = h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
                    await _pass(client, head, account)
                case h11.Data():
                    await _pass(client, h11.Data(data=event.data), account)
                case h11.EndOfMessage():
                    await _pass(client, h11.EndOfMessage(), account)
                    return None
                case _:
                    return BadResponse("the other side ended the connection without a response")
    except RESET:
        return BadResponse("the connection was reset before the response was whole")
    except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
        return BadResponse(f"the other side's response is malformed: {error}")


async def _pass(client: Client, event: h11.Event, account: Account) -> None:
    """Send `event` to the guest. One that is gone ends the connection, which has not failed by that."""
    try:
        await client.send(event)
    except RESET:
        account.end("the box closed the connection before it had the whole response")
        await checkpoint_if_cancelled()


def _unframed(response: h11.Response) -> Headers:
    """Its headers for a connection of ours: with Transfer-Encoding a Content-Length means nothing."""
    chunked = any(name == b"transfer-encoding" for name, _ in response.headers)
    kept = passed_on(response.headers, but=b"content-length" if chunked else b"")
    return [*kept, (b"connection", b"close")]
