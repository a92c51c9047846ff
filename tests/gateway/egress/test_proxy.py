"""The proxy against real servers of this host: HTTP, TLS, a slow one, a huge one; hostile requests; limits."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import h11
import pytest
import trustme
from anyio.abc import SocketStream

from voidbox_lab.gateway.egress import Bounds, EgressProxy
from voidbox_lab.gateway.egress.addresses import Address
from voidbox_lab.gateway.egress.audit import IN_FULL, Audit
from voidbox_lab.spec import Policy
from voidbox_lab.spec.egress import EgressLimits
from voidbox_lab.spec.events import Body, Denied, Egress

pytestmark = pytest.mark.anyio
Handler = Callable[[SocketStream], Awaitable[None]]
BOUNDS = Bounds(head_s=0.5, connect_s=1.0, idle_s=0.5, linger_s=0.2)


@asynccontextmanager
async def server(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A TCP server; its port."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            try:
                await handler(stream)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                return

    async with await anyio.create_tcp_listener(local_host=host) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


class Proxied:
    """A proxy that serves, and what it recorded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Body] = []
        self.proxy: EgressProxy

    @property
    def egress(self) -> list[Egress]:
        return [e for e in self.events if isinstance(e, Egress)]

    @property
    def denied(self) -> list[Denied]:
        return [e for e in self.events if isinstance(e, Denied)]

    async def record(self, body: Body) -> None:
        self.events.append(body)

    async def dial(self) -> SocketStream:
        return await anyio.connect_unix(self.path)

    async def say(self, data: bytes) -> bytes:
        """Send `data`, and all that is answered until the end."""
        async with await self.dial() as stream:
            await stream.send(data)
            return await rest(stream)

    async def connect(self, authority: str) -> tuple[SocketStream, bytes]:
        """A CONNECT and its answer's head."""
        stream = await self.dial()
        await stream.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive(1)
        return stream, head

    async def ended(self, count: int) -> Egress:
        """The last of `count` recorded connections."""
        with anyio.fail_after(10):
            while len(self.egress) < count:
                await anyio.sleep(0.01)
        return self.egress[-1]


async def rest(stream: SocketStream) -> bytes:
    data = b""
    with anyio.fail_after(20):
        try:
            while True:
                data += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return data


@asynccontextmanager
async def proxied(
    tmp_path: Path, policy: Policy, bounds: Bounds = BOUNDS, names: dict[str, list[str]] | None = None
) -> AsyncIterator[Proxied]:
    """A proxy for `policy`; at the end it is closed, and each of its connections has been recorded."""

    async def resolve(host: str) -> Sequence[Address]:
        return [ip_address(text) for text in (names or {})[host]]

    here = Proxied(tmp_path / "egress.sock")
    here.proxy = EgressProxy(policy, here.record, bounds=bounds, resolve=resolve if names is not None else None)
    async with anyio.create_task_group() as tasks:
        await tasks.start(here.proxy.serve, here.path)
        assert here.path.stat().st_mode & 0o777 == 0o600
        yield here
        with anyio.fail_after(10):
            await here.proxy.aclose()
    assert not here.path.exists()


def to(port: int, **limits: Any) -> Policy:
    return Policy(network="allowlist", egress=(f"127.0.0.1:{port}",), egress_limits=EgressLimits(**limits))


class Seen:
    """An HTTP server that answers with what it is told and keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer, self.asked = answer, b""
        self.requests: list[tuple[h11.Request, bytes]] = []

    async def __call__(self, stream: SocketStream) -> None:
        http = h11.Connection(h11.SERVER)
        request, body = None, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive()
                self.asked += data
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
        assert isinstance(request, h11.Request)
        self.requests.append((request, body))
        await stream.send(self.answer)


OK = b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-Here: yes\r\nKeep-Alive: timeout=5\r\n\r\nhello"


async def test_a_plain_request_is_written_anew(tmp_path: Path) -> None:
    """Its target's authority decides, and nothing of the guest's hop goes on."""
    seen = Seen(OK)
    async with server(seen) as port, proxied(tmp_path, to(port)) as here:
        answer = await here.say(
            f"POST http://127.0.0.1:{port}/path?q=1 HTTP/1.1\r\nHost: elsewhere.example\r\nContent-Length: 4\r\n"
            "Proxy-Authorization: Basic eA==\r\nProxy-Connection: keep-alive\r\nConnection: X-Hop, close\r\n"
            "X-Hop: secret\r\nUpgrade: h2c\r\nTE: trailers\r\nAccept: */*\r\n\r\nbody".encode()
        )
        assert answer.startswith(b"HTTP/1.1 200 Fine\r\n")
        assert answer.endswith(b"\r\n\r\nhello")
        assert b"x-here: yes\r\n" in answer
        assert b"keep-alive" not in answer
        ((request, body),) = seen.requests
        assert (request.method, request.target, body) == (b"POST", b"/path?q=1", b"body")
        assert dict(request.headers) == {
            b"host": f"127.0.0.1:{port}".encode(), b"content-length": b"4", b"accept": b"*/*",
            b"via": b"1.1 voidbox", b"connection": b"close",
        }  # fmt: skip
        event = await here.ended(1)
        assert (event.host, event.port, event.address) == ("127.0.0.1", port, "127.0.0.1")
        assert (event.verdict, event.rule, event.reason) == ("allowed", f"127.0.0.1:{port}", "")
        assert (event.bytes_out, event.bytes_in) == (len(seen.asked), len(OK))
        assert not here.denied


async def test_chunks_heads_and_an_expectation(tmp_path: Path) -> None:
    """Other framings of requests and responses."""
    chunked = Seen(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    async with server(chunked) as port, proxied(tmp_path, to(port)) as here:
        url = f"http://127.0.0.1:{port}/"
        answer = await here.say(
            f"PUT {url} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".encode()
        )
        assert answer.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        assert chunked.requests[0][1] == b"abc"
        # For a client of HTTP/1.0 the end of the connection is the end of the content.
        assert (await here.say(f"GET {url} HTTP/1.0\r\n\r\n".encode())).endswith(b"\r\n\r\nhello")
        chunked.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        assert (await here.say(f"HEAD {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).endswith(b"\r\n\r\n")
        chunked.answer = OK
        async with await here.dial() as stream:
            await stream.send(
                f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n".encode()
            )
            assert (await stream.receive()).startswith(b"HTTP/1.1 100 ")
            await stream.send(b"abc")
            assert (await rest(stream)).endswith(b"hello")
        assert chunked.requests[-1][1] == b"abc"


async def test_tls_through_a_tunnel(tmp_path: Path) -> None:
    """End to end: the proxy sees bytes and counts them; a huge answer comes whole."""
    ca = trustme.CA()
    outside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(outside)
    inside = ssl.create_default_context()
    ca.configure_trust(inside)
    size = 20_000_000
    raw: list[int] = []

    async def huge(stream: SocketStream) -> None:
        tls = await anyio.streams.tls.TLSStream.wrap(stream, server_side=True, ssl_context=outside)
        assert await tls.receive() == b"all of it"
        for _ in range(size // 1_000_000):
            await tls.send(b"x" * 1_000_000)
        await tls.unwrap()
        raw.append(1)

    async with server(huge) as port:
        policy = Policy(network="allowlist", egress=(f"localhost:{port}", f"127.0.0.1:{port}"))
        async with proxied(tmp_path, policy) as here:
            stream, head = await here.connect(f"localhost:{port}")
            assert head == b"HTTP/1.1 200 Connection established\r\n\r\n"
            tls = await anyio.streams.tls.TLSStream.wrap(stream, hostname="localhost", ssl_context=inside)
            await tls.send(b"all of it")
            got = 0
            async for data in tls:
                got += len(data)
            assert got == size
            await tls.aclose()
            event = await here.ended(1)
            assert (event.host, event.address) == ("localhost", "127.0.0.1")
            assert event.bytes_in > size
            assert 200 < event.bytes_out < 5000


async def test_a_tunnel_counts_to_the_byte_and_carries_half_closes(tmp_path: Path) -> None:
    """The server hears the end, and answers after it; what came with the head is part of it."""

    async def backwards(stream: SocketStream) -> None:
        await stream.send((await rest(stream))[::-1] * 2)

    async with server(backwards) as port, proxied(tmp_path, to(port)) as here:
        async with await here.dial() as stream:
            await stream.send(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\nabc".encode())
            await stream.send(b"def")
            await stream.send_eof()
            assert (await rest(stream)).endswith(b"\r\n\r\nfedcbafedcba")
        event = await here.ended(1)
        assert (event.bytes_out, event.bytes_in, event.verdict, event.reason) == (6, 12, "allowed", "")


async def test_a_refusal_names_the_rule(tmp_path: Path) -> None:
    """In the status line, in a header, in the content, and for the user in an event."""
    async with proxied(tmp_path, to(1)) as here:
        said = b"example.org:443 is not in this stage's egress allowlist; add it to the policy's egress"
        answer = await here.say(b"CONNECT Example.ORG:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 " + said + b"\r\n")
        assert b"X-Voidbox-Rule: allowlist\r\n" in answer
        assert answer.endswith(b"\r\n\r\n" + said + b"\n")
        answer = await here.say(b"GET http://169.254.169.254/latest/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"X-Voidbox-Rule: private-address\r\n" in answer
        event = await here.ended(2)
        assert (event.verdict, event.rule, event.bytes_in) == ("denied", "private-address", 0)
        assert [(d.rule, d.subject) for d in here.denied] == [
            ("egress", "example.org:443"), ("egress", "169.254.169.254:80"),
        ]  # fmt: skip


async def test_names_are_pinned(tmp_path: Path) -> None:
    """A name that is public when it is looked at and loopback a moment later leads nowhere."""
    answers = [["192.0.2.1", "127.0.0.1"], ["127.0.0.1"]]
    asked: list[str] = []

    async def rebinding(host: str) -> Sequence[Address]:
        asked.append(host)
        return [ip_address(text) for text in answers.pop(0)]

    async def never(stream: SocketStream) -> None:
        raise AssertionError("it was reached")

    async with server(never) as port:
        here = Proxied(tmp_path / "egress.sock")
        policy = Policy(network="allowlist", egress=(f"evil.example:{port}", f"192.0.2.1:{port}"))
        here.proxy = EgressProxy(policy, here.record, bounds=BOUNDS, resolve=rebinding)
        async with anyio.create_task_group() as tasks:
            await tasks.start(here.proxy.serve, here.path)
            request = f"CONNECT evil.example:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            # 192.0.2.1 is for documentation and takes no connection.
            assert (await here.say(request)).split()[1] in {b"502", b"504"}
            assert asked == ["evil.example"]
            assert (await here.say(request)).split()[1] == b"403"
            await here.proxy.aclose()
        assert [(e.verdict, e.address) for e in here.egress] == [
            ("failed", "192.0.2.1"), ("denied", "127.0.0.1"),
        ]  # fmt: skip


async def test_what_cannot_be_reached(tmp_path: Path) -> None:
    """Allowed, and failed: said to the guest and recorded, and no refusal for the user to act on."""
    async with server(Seen(OK)) as port:
        pass
    async with proxied(tmp_path, Policy(network="monitored"), names={"gone.example": []}) as here:
        assert (await here.say(b"CONNECT gone.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")).split()[1] == b"502"
    async with proxied(tmp_path, to(port)) as here:
        answer = await here.say(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" could not be reached: " in answer
        assert (await here.ended(1)).verdict == "failed"
        assert not here.denied


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    ],
)
async def test_servers_that_speak_no_http(tmp_path: Path, answer: bytes) -> None:
    """The guest gets a 502 that says so."""
    async with server(Seen(answer)) as port, proxied(tmp_path, to(port)) as here:
        got = await here.say(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert got.startswith(b"HTTP/1.1 502 ")
        assert (await here.ended(1)).verdict == "failed"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n", 400),
        ("GET https://127.0.0.1:PORT/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET http://u:p@127.0.0.1:PORT/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("CONNECT 0x7f.1:PORT HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("CONNECT 2130706433:PORT HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("CONNECT 127.0.0.1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("CONNECT 127.0.0.1:PORT HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 400),
        ("CONNECT b\u00fccher.example:PORT HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("POST URL HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST URL HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        ("POST URL HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("POST URL HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET URL HTTP/1.1\r\nHost: x\r\nX: a\r\n b: c\rd\r\n\r\n", 400),
        ("GET URL HTTP/1.1\r\nHost: x\r\nX: " + "x" * 20_000 + "\r\n\r\n", 431),
        ("GET URL HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        ("GET URL HTTP/1.1\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)
async def test_requests_that_are_none(tmp_path: Path, request_: str, status: int) -> None:
    """Refused before anybody is dialled, and recorded."""

    async def never(stream: SocketStream) -> None:
        raise AssertionError("it was reached")

    async with server(never) as port, proxied(tmp_path, to(port)) as here:
        text = request_.replace("URL", f"http://127.0.0.1:{port}/").replace("PORT", str(port))
        answer = await here.say(text.encode())
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:100]
        event = await here.ended(1)
        assert (event.verdict, event.rule) == ("denied", "request")
        await here.proxy.aclose()
        (denied,) = here.denied
        assert (denied.rule, denied.message) == ("request", event.reason)


async def test_a_second_request_is_not_carried(tmp_path: Path) -> None:
    """Whatever follows the first on its connection, or hides in its content, reaches nobody."""
    seen = Seen(OK)
    async with server(seen) as port, proxied(tmp_path, to(port)) as here:
        one = f"GET http://127.0.0.1:{port}/a HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await here.say((one + one.replace("/a", "/b")).encode())
        assert answer.count(b"HTTP/1.1 200") == 1
        assert [request.target for request, _ in seen.requests] == [b"/a"]
        # With a content of nothing by its Connection header's word, the rest would be a request of its own.
        hidden = b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"
        await here.say(
            b"POST http://127.0.0.1:%d/c HTTP/1.1\r\nHost: x\r\nConnection: content-length\r\nContent-Length: %d"
            b"\r\n\r\n%b" % (port, len(hidden), hidden)
        )
        assert [(r.target, body) for r, body in seen.requests] == [(b"/a", b""), (b"/c", hidden)]


async def test_waits_have_ends(tmp_path: Path) -> None:
    """For a head, and for silence; a client that says nothing at all is no connection."""

    async def silent(stream: SocketStream) -> None:
        await rest(stream)

    async with server(silent) as port, proxied(tmp_path, to(port)) as here:
        assert (await here.say(b"CONNECT 127.")).startswith(b"HTTP/1.1 408 ")
        stream, _ = await here.connect(f"127.0.0.1:{port}")
        async with stream:
            assert await rest(stream) == b""
        assert (await here.ended(2)).reason == "nothing was sent in either direction for 0.5 s"
        async with await here.dial() as stream:
            await stream.send_eof()
            assert await rest(stream) == b""
        assert len(here.egress) == 2


async def test_limits_end_connections_and_are_named(tmp_path: Path) -> None:
    """At once, in a minute, in all."""

    async def flood(stream: SocketStream) -> None:
        while True:
            await stream.send(b"x" * 65536)

    async def silent(stream: SocketStream) -> None:
        await rest(stream)

    patient = Bounds(head_s=5, idle_s=30, linger_s=0.2)
    async with AsyncExitStack() as stack:
        port, quiet = (
            await stack.enter_async_context(server(flood)),
            await stack.enter_async_context(server(silent)),
        )
        authority = f"127.0.0.1:{port}"
        async with proxied(tmp_path, to(port, mb=1), patient) as here:
            stream, _ = await here.connect(authority)
            async with stream:
                assert len(await rest(stream)) <= 1 << 20
            event = await here.ended(1)
            assert event.verdict == "allowed"
            assert "egress_limits.mb" in event.reason
            assert (1 << 20) < event.bytes_in <= (1 << 20) + 65536
            stream, head = await here.connect(authority)
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"X-Voidbox-Rule: egress_limits.mb\r\n" in head
            await stream.aclose()
            await here.ended(2)
            with anyio.fail_after(5):
                while [d.rule for d in here.denied] != ["egress_limits.mb"] * 2:
                    await anyio.sleep(0.01)
        async with proxied(tmp_path, to(quiet, connections=2), patient) as here:
            open_ = [(await here.connect(f"127.0.0.1:{quiet}"))[0] for _ in range(2)]
            stream, head = await here.connect(f"127.0.0.1:{quiet}")
            assert b"X-Voidbox-Rule: egress_limits.connections\r\n" in head
            for each in (*open_, stream):
                await each.aclose()
            await here.ended(3)
            stream, head = await here.connect(f"127.0.0.1:{quiet}")
            assert head.startswith(b"HTTP/1.1 200 ")
            await stream.aclose()
        async with proxied(tmp_path, to(quiet, per_minute=3), patient) as here:
            heads = []
            for _ in range(5):
                stream, head = await here.connect("example.org:1")
                heads.append(head.split()[1])
                await stream.aclose()
            assert heads == [b"403"] * 3 + [b"429"] * 2, "what is denied counts too"


async def test_the_end_of_a_box_is_recorded(tmp_path: Path) -> None:
    """What is open then has its event before the proxy is closed."""

    async def silent(stream: SocketStream) -> None:
        await rest(stream)

    async with server(silent) as port, proxied(tmp_path, to(port), Bounds()) as here:
        stream, _ = await here.connect(f"127.0.0.1:{port}")
        await stream.send(b"12345")
        await anyio.sleep(0.1)
        await here.proxy.aclose()
        (event,) = here.egress
        assert (event.bytes_out, event.reason) == (5, "it was open when its box was closed")
        await stream.aclose()


async def test_a_guest_that_has_read_enough(tmp_path: Path) -> None:
    """As ``curl URL | head``: what was answered has not failed, and the record says who ended it."""

    async def flood(stream: SocketStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            await stream.send(b"x" * 65536)

    async with server(flood) as port, proxied(tmp_path, to(port)) as here:
        async with await here.dial() as stream:
            await stream.send(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            assert (await stream.receive()).startswith(b"HTTP/1.1 200 ")
        event = await here.ended(1)
        assert (event.verdict, event.rule) == ("allowed", f"127.0.0.1:{port}")
        assert event.reason == "the box closed the connection before it had the whole response"
        assert event.bytes_in > 0


async def test_what_asked_for_nothing_is_no_connection(tmp_path: Path) -> None:
    """Neither when its box is closed, nor when it resets."""
    async with proxied(tmp_path, to(1), Bounds()) as here:
        async with await here.dial(), await here.dial() as begun:
            await begun.send(b"CONNECT 127.")
            await anyio.sleep(0.1)
            await here.proxy.aclose()
        assert here.events == []


async def test_what_was_not_decided_was_not_denied(tmp_path: Path) -> None:
    """Its box was closed while the name was looked up."""
    asked = anyio.Event()

    async def resolve(host: str) -> Sequence[Address]:
        asked.set()
        await anyio.sleep_forever()
        raise AssertionError

    events: list[Body] = []

    async def record(body: Body) -> None:
        events.append(body)

    policy, path = Policy(network="monitored"), tmp_path / "egress.sock"
    proxy = EgressProxy(policy, record, bounds=Bounds(), resolve=resolve)
    async with anyio.create_task_group() as tasks:
        await tasks.start(proxy.serve, path)
        async with await anyio.connect_unix(path) as stream:
            await stream.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
            await asked.wait()
            await proxy.aclose()
    (event,) = events
    assert isinstance(event, Egress)
    assert (event.host, event.verdict) == ("example.org", "failed")
    assert event.reason == "it was open when its box was closed"


async def test_many_refusals_are_few_events(tmp_path: Path) -> None:
    """A guest that is refused as fast as it can costs the store next to nothing, and all are counted."""
    async with proxied(tmp_path, to(1, per_minute=100_000)) as here:
        for _ in range(IN_FULL + 50):
            stream, _ = await here.connect("example.org:443")
            await stream.aclose()
        await here.proxy.aclose()
        assert len(here.egress) == IN_FULL
        assert sum(d.count for d in here.denied) == IN_FULL + 50
        assert len(here.denied) == IN_FULL + 1


async def test_targets_without_number_are_counted_as_one() -> None:
    """A new name each time is no way around; a new minute tells what the last one brought."""
    events: list[Body] = []

    async def record(body: Body) -> None:
        events.append(body)

    now = [0.0]
    audit = Audit(record, lambda: now[0])
    for n in range(1000):
        await audit.ended(Egress(host=f"{n}.example", port=1, verdict="denied", reason="no"), "egress")
    now[0] = 61.0
    await audit.ended(Egress(host="late.example", port=1, verdict="denied", reason="no"), "egress")
    denied = [e for e in events if isinstance(e, Denied)]
    assert len(denied) < 100
    assert sum(d.count for d in denied) == 1001
    assert max(denied, key=lambda d: d.count).subject == "other targets"
    assert denied[-1].subject == "late.example:1"
