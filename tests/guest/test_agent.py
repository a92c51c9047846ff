"""The agent's other duties: telemetry, proxy, malformed frames, and a start that imports little."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.guest.harness import guest_box, start_guest
from voidbox_lab.box import Box
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.resources import data_dir
from voidbox_lab.spec import Policy
from voidbox_lab.spec.events import Telemetry
from voidbox_lab.wire import frames as f
from voidbox_lab.wire.jsonlite import dumps
from voidbox_lab.wire.protocol import MAX_PROXIES


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """A box whose guest is a process here."""
    async with guest_box(tmp_path) as made:
        yield made


@pytest.mark.anyio
async def test_telemetry_samples_are_sane(box: Box) -> None:
    """Every field within what it can be; two samples, an interval apart."""
    samples = []
    async with await box.start_exec(["sh", "-c", "while :; do :; done"], cwd="/"):
        began = anyio.current_time()
        stream = box.telemetry(0.3)
        async for sample in stream:
            samples.append(sample)
            if len(samples) == 3:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        assert anyio.current_time() - began >= 0.6
    last = samples[-1]
    assert 0 < last.cpu <= 1
    assert 0 < last.memory_used_kb < last.memory_total_kb
    assert 0 < last.disk_used_kb < last.disk_total_kb
    assert last.processes >= 2
    assert len(last.top) == 5
    assert last.top[0].cpu > 0.2
    assert samples[0].uptime_s < last.uptime_s


@pytest.mark.anyio
async def test_policy_names_must_exist(box: Box) -> None:
    """A policy that allows what is not there is the user's error, by name."""
    await box.apply(Policy(commands=("sh", "/usr/bin/", "/bin/sh")))
    with pytest.raises(UserError, match="no-such-tool"):
        await box.apply(Policy(commands=("sh", "no-such-tool")))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("nonsense", {}),
        ("exec", {}),
        ("exec", {"argv": "ls"}),
        ("exec", {"argv": ["ls"] * 5000}),
        ("exec", {"argv": ["ls"], "env": {"A=B": "c"}}),
        ("exec", {"argv": ["ls"], "user": "bob"}),
        ("exec", {"argv": ["ls"], "timeout_s": -1}),
        ("exec", {"argv": ["ls"], "rlimits": {"open_files": "many"}}),
        ("put", {"path": 3}),
        ("put", {"path": "/tmp/x", "mode": 1 << 20}),
        ("get", {"path": "/etc/passwd", "offset": -1}),
        ("list", {"path": "/" + "x" * 5000}),
        ("telemetry", {"interval_s": 0}),
        ("proxy", {"listen": 0}),
        ("policy", {"commands": [1]}),
    ],
)
async def test_bad_requests_are_typed(box: Box, op: str, fields: dict[str, object]) -> None:
    """Whatever the host gets wrong, the agent says so and lives."""
    with pytest.raises(UserError) as caught:
        await box._connection.request(op, **fields)
    assert caught.value.cause == "bad-request"
    await box.ping()


@pytest.mark.anyio
async def test_identity_is_for_boxes(box: Box) -> None:
    """An agent on a host does not set the host's clock."""
    with pytest.raises(ProviderError) as caught:
        await box._connection.request("identity", hostname="x")
    assert caught.value.cause == "unsupported"


@pytest.mark.anyio
async def test_a_request_that_does_not_fit_is_refused_here(box: Box) -> None:
    """Before a byte of it is sent."""
    with pytest.raises(LimitExceeded) as caught:
        await box.run(["echo", "x" * 300_000], cwd="/")
    assert caught.value.limit == "frame"


@pytest.mark.anyio
async def test_proxy_carries_bytes_both_ways_with_half_close(box: Box, tmp_path: Path) -> None:
    """A client sends, ends its side, and reads the answer to the last byte; telemetry counts them as network."""
    data = os.urandom(3_000_000)
    before = await a_sample(box)

    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send(chunk)

    listener = await anyio.create_unix_listener(tmp_path / "77")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        port = (await box._connection.request("proxy", listen=0, port=77))["listen"]
        async with await anyio.connect_tcp("127.0.0.1", port) as client, anyio.create_task_group() as sending:

            async def send() -> None:
                await client.send(data)
                await client.send_eof()

            sending.start_soon(send)
            back = b"".join([chunk async for chunk in client])
        assert back == data
        tasks.cancel_scope.cancel()
    after = await a_sample(box)
    assert after.net_rx_bytes - before.net_rx_bytes >= len(data)
    assert after.net_tx_bytes - before.net_tx_bytes >= len(data)


async def a_sample(box: Box) -> Telemetry:
    """Of telemetry, the first."""
    stream = box.telemetry(1.0)
    try:
        return await anext(stream)
    finally:
        await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_proxy_has_a_port_for_each_way(box: Box, tmp_path: Path) -> None:
    """Each leads where it was told to; asked again, a port leads elsewhere; there are only so many."""

    async def name(number: int, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b"%d" % number)

    async def hears(port: int) -> bytes:
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            return await client.receive()

    async with anyio.create_task_group() as tasks:
        for number in (77, 78):
            listener = await anyio.create_unix_listener(tmp_path / str(number))
            tasks.start_soon(listener.serve, partial(name, number))
        first, second = [
            (await box._connection.request("proxy", listen=0, port=number))["listen"] for number in (77, 78)
        ]
        assert [await hears(first), await hears(second)] == [b"77", b"78"]
        await box._connection.request("proxy", listen=first, port=78)
        assert [await hears(first), await hears(second)] == [b"78", b"78"]
        for _ in range(MAX_PROXIES - 2):
            await box._connection.request("proxy", listen=0, port=77)
        with pytest.raises(LimitExceeded, match=f"{MAX_PROXIES} ports"):
            await box._connection.request("proxy", listen=0, port=77)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_proxy_without_a_gateway_resets(box: Box) -> None:
    """Nothing listens on the host: the client is told at once."""
    port = (await box._connection.request("proxy", listen=0, port=78))["listen"]
    with anyio.fail_after(5):
        # It may have come before the client's socket is set up.
        with pytest.raises((anyio.BrokenResourceError, OSError)):
            async with await anyio.connect_tcp("127.0.0.1", port) as client:
                await client.receive()
    await box.ping()


def _hostile(tmp_path: Path, data: bytes) -> int:
    """Send `data` as the host; the agent's exit code."""
    sock, process = start_guest(tmp_path)
    try:
        with sock:
            sock.settimeout(10)
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except OSError:
                pass
        return process.wait(10)
    finally:
        process.kill()
        process.wait()


GOOD = f.encode(f.REQUEST, 1, dumps({"op": "exec", "argv": ["cat"], "cwd": "/", "stdin": True}))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 100,
        f.encode(f.REQUEST, 1, b"[" * 1000),
        f.encode(f.REPLY, 1, b"{}"),
        f.encode(f.DATA, 7, b"x"),
        GOOD + GOOD,
        GOOD + f.encode(f.DATA, 1, bytes(f.MAX_DATA)) * 100 + struct.pack("!BBHII", 1, f.DATA, 0, 1, 1 << 31),
        GOOD + f.encode_credit(1, 1, 1 << 31),
        GOOD + f.encode(f.DATA, 1, b"x", 2),
        GOOD[:-3],
    ],
)
def test_malformed_frames_end_the_connection_not_the_agent(tmp_path: Path, data: bytes) -> None:
    """The agent returns from serve in good order: in a box it would power off, not panic."""
    assert _hostile(tmp_path, data) == 0


def test_a_request_that_came_with_the_handshake_is_answered(tmp_path: Path) -> None:
    """The host's first request may arrive in one piece with its WELCOME: no event will announce it again."""
    early = 'from wire.frames import Frame; early.append(Frame(16, 0, 1, b\'{"op":"ping"}\'))'
    sock, process = start_guest(tmp_path, early)
    with sock:
        sock.settimeout(10)
        (reply,) = f.Decoder().feed(sock.recv(65536))
        assert (reply.kind, reply.stream) == (f.REPLY, 1)
    assert process.wait(10) == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
def test_any_bytes_end_the_connection_not_the_agent(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    """Good requests with rubbish between them."""
    assert _hostile(tmp_path_factory.mktemp("h"), GOOD + b"".join(parts)) == 0


def test_the_agent_imports_little() -> None:
    """Each of these costs an emulated guest tens of milliseconds before its first word."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; from voidbox_guest import agent, boot, trees; "
        "print(' '.join(sorted(sys.modules)))"
    )
    root = Path(__file__).parents[2] / "voidbox_lab"
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(data_dir("guest")), str(root)],
        capture_output=True, check=True, text=True, timeout=30,
    ).stdout.split()  # fmt: skip
    dear = {"asyncio", "collections", "dataclasses", "enum", "functools", "hashlib", "inspect", "json", "logging"}
    dear |= {"pathlib", "pydantic", "re", "selectors", "signal", "socket", "subprocess", "threading", "typing"}
    assert not dear & set(out)
    assert "voidbox_guest.agent" in out
